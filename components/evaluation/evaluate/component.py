"""Evaluate: base and tuned model on the same held-out rows."""

from kfp import dsl

from llm_finetune.components.shared.images import train_component


@train_component()
def evaluate(
    model_config: dsl.Input[dsl.Model],
    ft_result: dsl.Input[dsl.Model],
    val_tokens: dsl.Input[dsl.Dataset],
    val_sft: dsl.Input[dsl.Dataset],
    eval_report: dsl.Output[dsl.Metrics],
    eval_page: dsl.Output[dsl.HTML],
    eval_examples: dsl.Output[dsl.Dataset],
    max_samples: int = 256,
    generate_samples: int = 64,
    max_new_tokens: int = 128,
    generation_engine: str = "auto",
    few_shot: int = 5,
    temperature: float = 0.0,
    top_p: float = 1.0,
    text_scores: str = "rouge_l,chrf",
    answer_format: str = "auto",
    answer_pattern: str = "",
    slice_by: str = "",
    tokens_per_batch: int = 8192,
    tasks: str = "",
    task_limit: int = 0,
    task_few_shot: int = -1,
    task_chat_template: bool = False,
    judge_endpoint: str = "",
    judge_model: str = "",
    judge_rival: str = "base",
    endpoint: str = "",
    endpoint_model: str = "",
    request_timeout: float = 60.0,
    concurrent_requests: int = 8,
    seed: int = 42,
    settings: dict = {},
    package_version: str = "",
    train_tokens: dsl.Input[dsl.Dataset] = None,
):
    """Measures loss, answers and tasks of the base and the tuned model on the same validation rows.

    Args:
        model_config: Base model of Load Base Model.
        ft_result: Adapter of Fine-Tune LoRA.
        val_tokens: Validation rows of Tokenize.
        val_sft: The same rows as text, of Format for SFT.
        eval_report: Base and tuned figures side by side; its file also holds slices, every answer, and what could not
            be measured.
        eval_page: The figures with their intervals and the answers next to their references.
        eval_examples: Every measured row with its losses, answers and scores.
        max_samples: Validation rows to measure, drawn at random; 0 means all.
        generate_samples: Rows of them whose prompts are answered too; 0 skips generation.
        max_new_tokens: Most tokens of an answer.
        generation_engine: Who writes the answers: transformers; vllm, which must be installed; auto takes vLLM where it
            is installed with a GPU and can serve this adapter on its base, and transformers elsewhere.
        few_shot: Training documents shown to the base model before each prompt, for a rival that knows the task's form;
            0 leaves it out. Needs train_tokens.
        temperature: Above 0, base and tuned model answer once more with sampling at this temperature.
        top_p: Share of the probability that sampled tokens are drawn from.
        text_scores: Scores of answers as text, separated by commas: rouge_l, chrf; empty for none.
        answer_format: json scores answers as JSON objects, text does not; auto does where every reference is one.
        answer_pattern: Regular expression that a whole answer must match; empty for none.
        slice_by: Columns of the validation rows whose values are compared one by one, separated by commas.
        tokens_per_batch: Most tokens in a batch, padding included; halved whenever memory runs out.
        tasks: Tasks of lm-evaluation-harness: names, or paths of YAML files, separated by commas.
        task_limit: First documents of each task to ask; 0 asks all, as decisions need.
        task_few_shot: Examples in a task's prompts; -1 takes the task's own number.
        task_chat_template: Put tasks into the model's chat template.
        judge_endpoint: OpenAI-compatible address of a model that judges pairs of answers, such as https://host/v1; its
            key comes from the environment variable JUDGE_API_KEY. Empty for no judge.
        judge_model: Name of the judging model.
        judge_rival: Whose answers the tuned model's are judged against: base, base_few_shot or served.
        endpoint: OpenAI-compatible address of a deployed model that answers the same prompts (vLLM's completions
            route); its key comes from ENDPOINT_API_KEY. Empty for none.
        endpoint_model: Name of the deployed model.
        request_timeout: Seconds that judge and deployed model may take for one answer.
        concurrent_requests: Requests to them in flight.
        seed: Seed of the drawn rows, the examples, sampling and the confidence intervals.
        settings: Settings by name that take precedence over the parameters above (the card's section of the recipe).
        package_version: Version that compiled the pipeline; the step refuses another one.
        train_tokens: Training rows of Tokenize, to take the few_shot examples from.
    """
    arguments = locals()
    from llm_finetune.components.evaluation.evaluate import step
    from llm_finetune.components.shared.card import card, lineage, write_metrics
    from llm_finetune.components.shared.files import content_hash, write_text
    from llm_finetune.components.shared.metadata import flag
    from llm_finetune.components.shared.row_counts import check_whole

    with card(package_version):
        check_whole({"val_tokens": val_tokens, "val_sft": val_sft, "train_tokens": train_tokens})
        chosen = step.Settings.of(arguments)
        evaluation = step.evaluate(
            model_config.path,
            ft_result.path,
            val_tokens.path,
            val_sft.path,
            eval_examples.path,
            eval_page.path,
            chosen,
            flag(model_config, "load_in_4bit"),
            train_tokens.path if train_tokens else None,
        )
        write_metrics(eval_report, evaluation.rows())
        write_text(eval_report.path, evaluation.report())
        inputs = {
            name: arguments[name] for name in ("model_config", "ft_result", "val_tokens", "val_sft", "train_tokens")
        }
        produced = lineage(inputs, chosen.seed) | {"dtype": evaluation.dtype}
        eval_report.metadata.update(produced | {"content_hash": content_hash(eval_report.path)})
        eval_examples.metadata.update(produced | {"content_hash": content_hash(eval_examples.path)})
