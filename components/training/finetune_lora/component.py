"""Fine-Tune LoRA: trains an adapter on token rows."""

from kfp import dsl

from llm_finetune.components.shared.images import train_component


@train_component()
def finetune_lora(
    model_config: dsl.Input[dsl.Model],
    lora_config: dsl.Input[dsl.Artifact],
    train_tokens: dsl.Input[dsl.Dataset],
    val_tokens: dsl.Input[dsl.Dataset],
    ft_result: dsl.Output[dsl.Model],
    train_metrics: dsl.Output[dsl.Metrics],
    loss_curve: dsl.Output[dsl.HTML],
    training_logs: dsl.Output[dsl.Artifact],
    num_epochs: int = 3,
    batch_size: int = 4,
    learning_rate: float = 2e-4,
    logging_steps: int = 10,
    gradient_accumulation_steps: int = 1,
    tokens_per_micro_batch: int = 16384,
    warmup_ratio: float = 0.03,
    lr_scheduler: str = "cosine",
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    early_stopping_patience: int = 0,
    checkpoint_folder: str = "",
    checkpoint_root: str = "",
    checkpoint_steps: int = 0,
    gradient_checkpointing: str = "auto",
    evaluate_first: bool = True,
    dtype: str = "auto",
    processes: int = 0,
    parallel: str = "auto",
    report_to: str = "",
    seed: int = 42,
    settings: dict = {},
    package_version: str = "",
):
    """Trains a LoRA adapter on the completions of the token rows and measures it on the validation rows.

    Args:
        model_config: Base model of Load Base Model; its load_in_4bit decides between QLoRA and LoRA (also without it).
        lora_config: Adapter configuration of Apply LoRA.
        train_tokens: Rows to train on.
        val_tokens: Rows to measure on.
        ft_result: The adapter (safetensors) with tokenizer and generation config.
        train_metrics: Losses, epochs, tokens per second and peak memory.
        loss_curve: Loss, learning rate and speed over the steps.
        training_logs: TensorBoard's event files.
        num_epochs: Passes over the training rows.
        batch_size: Rows per optimizer step and GPU, before accumulation; n GPUs take n times as many, and learning_rate
            stays as it is. Packed rows hold several documents.
        learning_rate: Peak learning rate.
        logging_steps: Optimizer steps between two points of the curve.
        gradient_accumulation_steps: Multiplies the rows per optimizer step without more memory.
        tokens_per_micro_batch: Most tokens of packed rows sent through the model at once; the result does not change.
        warmup_ratio: Share of the steps over which the learning rate rises.
        lr_scheduler: Course of the learning rate: cosine, linear, constant or constant_with_warmup.
        weight_decay: AdamW's weight decay.
        max_grad_norm: Gradients are scaled down to this norm.
        early_stopping_patience: Stop after so many validations without a better loss and keep the best; 0 never stops.
        checkpoint_folder: Folder that outlives the pod, or a place in an object store (s3://, gs://) that a copy of
            every checkpoint is sent to; training resumes from its latest checkpoint, and refuses those
            of other data, another model or other settings. Empty keeps none.
        checkpoint_root: Where no checkpoint_folder is given, folder that outlives the pod and holds one of its own for
            every training, named after data, model and settings.
        checkpoint_steps: Optimizer steps between checkpoints and validations; 0 means once per epoch.
        gradient_checkpointing: on saves memory for about a third more computing; off is faster where it fits; auto
            takes off where the estimate fits the GPU's free memory.
        evaluate_first: Measure the validation loss before the first step too.
        dtype: Precision of matrix products: auto, bfloat16 or float32.
        processes: Processes that train, one per GPU; 0 takes all GPUs of the pod, or one process where there is none.
        parallel: How several processes share the model: ddp, all weights on each GPU; fsdp, the frozen weights divided
            between them; auto, ddp where the model fits.
        report_to: Trackers to report to, mlflow (variable MLFLOW_TRACKING_URI) and wandb (WANDB_API_KEY), separated by
            commas.
        seed: Seed of the adapter's initial weights, dropout and the order of rows.
        settings: Settings by name that take precedence over the parameters above (the card's section of the recipe).
        package_version: Version that compiled the pipeline; the step refuses another one.
    """
    arguments = locals()
    from llm_finetune.components.shared.card import card, lineage, write_metrics
    from llm_finetune.components.shared.metadata import flag
    from llm_finetune.components.shared.row_counts import check_whole
    from llm_finetune.components.training.finetune_lora import step

    with card(package_version):
        check_whole({"train_tokens": train_tokens, "val_tokens": val_tokens})
        chosen = step.Settings.of(arguments)
        produced_by = lineage(
            {name: arguments[name] for name in ("model_config", "lora_config", "train_tokens", "val_tokens")},
            chosen.seed,
        )
        facts = step.finetune_lora(
            model_config.path,
            lora_config.path,
            train_tokens.path,
            val_tokens.path,
            ft_result.path,
            loss_curve.path,
            chosen,
            flag(model_config, "load_in_4bit"),
            produced_by["inputs"],
            training_logs.path,
        )
        training_logs.metadata.update(produced_by)
        ft_result.metadata.update(step.result_metadata(ft_result.path, facts) | produced_by)
        write_metrics(train_metrics, vars(facts))
