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
    max_samples: int = 256,
    generate_samples: int = 64,
    max_new_tokens: int = 128,
    tokens_per_batch: int = 8192,
    seed: int = 42,
    settings: dict = {},
    package_version: str = "",
):
    """Measures loss, perplexity and answers of the base and the tuned model on the same validation rows.

    Args:
        model_config: Base model of Load Base Model.
        ft_result: Adapter of Fine-Tune LoRA.
        val_tokens: Validation rows of Tokenize.
        val_sft: The same rows as text, of Format for SFT.
        eval_report: Base and tuned figures side by side; its file also holds every generated answer.
        eval_page: The figures and the answers next to their references.
        max_samples: Validation rows to measure, drawn at random; 0 means all.
        generate_samples: Rows of them whose prompts are answered too; 0 skips generation.
        max_new_tokens: Most tokens of an answer.
        tokens_per_batch: Most tokens in a batch when losses are measured, padding included.
        seed: Seed of the drawn rows and of the confidence interval.
        settings: Settings by name that take precedence over the parameters above (the card's section of the recipe).
        package_version: Version that compiled the pipeline; the step refuses another one.
    """
    arguments = locals()
    from llm_finetune.components.evaluation.evaluate import step
    from llm_finetune.components.shared.card import card, lineage, write_metrics
    from llm_finetune.components.shared.files import write_text

    with card(package_version):
        chosen = step.Settings.of(arguments)
        metrics, samples = step.evaluate(
            model_config.path,
            ft_result.path,
            val_tokens.path,
            val_sft.path,
            eval_page.path,
            chosen,
            bool(model_config.metadata.get("load_in_4bit")),
        )
        write_metrics(eval_report, metrics)
        write_text(eval_report.path, step.report(metrics, samples))
        inputs = {name: arguments[name] for name in ("model_config", "ft_result", "val_tokens", "val_sft")}
        eval_report.metadata.update(lineage(inputs, chosen.seed))
