"""Apply LoRA: chooses the adapter and checks it against the architecture before a GPU is asked for."""

from kfp import dsl

from llm_finetune.components.shared.images import train_component


@train_component()
def apply_lora(
    model_config: dsl.Input[dsl.Model],
    lora_config: dsl.Output[dsl.Artifact],
    model_summary: dsl.Output[dsl.Markdown],
    r: int = 16,
    lora_alpha: int = 32,
    lora_dropout: float = 0.05,
    target_modules: str = "q_proj,k_proj,v_proj,o_proj",
    use_rslora: bool = False,
    use_dora: bool = False,
    init: str = "default",
    modules_to_save: str = "",
    max_length: int = 1024,
    batch_size: int = 4,
    tokens_per_micro_batch: int = 16384,
    gradient_checkpointing: str = "auto",
    gpu_memory_gib: float = 0.0,
    settings: dict = {},
    package_version: str = "",
):
    """Writes PEFT's adapter configuration after checking every module name against the model's architecture.

    The architecture is built on the meta device, without weights and without a GPU; trainable parameters are counted
    there and the memory of the training is estimated.

    Args:
        model_config: Base model of Load Base Model.
        lora_config: Folder with PEFT's adapter_config.json.
        model_summary: Rank, targets, trainable parameters, estimated GPU memory and whether it fits.
        r: Rank of the adapter.
        lora_alpha: Scale: the adapter's product is multiplied by lora_alpha / r.
        lora_dropout: Dropout before the adapter.
        target_modules: Names of modules separated by commas, or all-linear for every linear module but the head.
        use_rslora: Scale by lora_alpha / sqrt(r), which keeps high ranks stable.
        use_dora: Learn magnitude and direction apart (DoRA); slower, and the adapter can only be served merged.
        init: Initial values: default, gaussian, orthogonal, olora or pissa.
        modules_to_save: Modules to train in full beside the adapter, separated by commas.
        max_length: Tokens of the longest row; only for the memory estimate.
        batch_size: Rows per optimizer step and device; only for the memory estimate.
        tokens_per_micro_batch: Most tokens that go through the model at once; only for the memory estimate.
        gradient_checkpointing: on, off or auto (on where it does not fit without); only for the memory estimate.
        gpu_memory_gib: Memory of the training GPU, to say whether the training fits; 0 if unknown.
        settings: Settings by name that take precedence over the parameters above (the card's section of the recipe).
        package_version: Version that compiled the pipeline; the step refuses another one.
    """
    arguments = locals()
    from llm_finetune.components.model.apply_lora import step
    from llm_finetune.components.shared.card import card, lineage
    from llm_finetune.components.shared.metadata import flag

    with card(package_version):
        chosen = step.Settings.of(arguments)
        four_bit = flag(model_config, "load_in_4bit")
        facts = step.apply_lora(model_config.path, lora_config.path, model_summary.path, chosen, four_bit)
        lora_config.metadata.update(vars(facts) | lineage({"model_config": model_config}))
