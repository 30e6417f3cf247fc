"""Merge & Export: merges the adapter, proves that nothing was lost, and ships the model with all it needs."""

from kfp import dsl

from llm_finetune.components.shared.images import train_component


@train_component()
def merge_export(
    model_config: dsl.Input[dsl.Model],
    ft_result: dsl.Input[dsl.Model],
    merged_model: dsl.Output[dsl.Model],
    model_summary: dsl.Output[dsl.Markdown],
    push_to_hub: bool = False,
    hub_repo: str = "",
    save_format: str = "safetensors",
    export_uri: str = "",
    export_overwrite: bool = False,
    private: bool = True,
    dtype: str = "auto",
    keep_adapter: bool = False,
    loss_tolerance: float = 0.05,
    min_agreement: float = 0.95,
    registry_url: str = "",
    registered_model: str = "",
    plan: dict = {},
    settings: dict = {},
    package_version: str = "",
    eval_report: dsl.Input[dsl.Metrics] = None,
):
    """Merges the adapter into the weights it was trained against and writes a folder that vLLM loads.

    The merged model is read back from its files and compared with the adapter on validation rows; one that answers
    differently is refused. Tokenizer, chat template, generation config, licence and model card lie beside the weights.

    Args:
        model_config: Base model of Load Base Model.
        ft_result: Adapter of Fine-Tune LoRA.
        merged_model: Folder with weights, tokenizer, chat template, generation config and model card.
        model_summary: Base model, format, size, parity, and where the model lies.
        push_to_hub: Push the folder to the Hugging Face Hub; needs a token with write access in HF_TOKEN.
        hub_repo: Repository to push to, owner/name; made when absent.
        save_format: safetensors, or pt for pickle files (written with a warning; vLLM Serve takes safetensors only).
        export_uri: Where to copy the folder as well: gs://, s3:// or a mounted path; a manifest is written last. The
            place is empty, or holds an earlier export: of that, what the new one lacks is removed, and nothing else.
        export_overwrite: Write to an export_uri or hub_repo that holds files of others too: those of the same names
            are replaced, all others stay.
        private: Whether a new repository on the Hub is private.
        dtype: Precision of the stored weights: bfloat16, float16, float32, or auto for the narrowest that keeps what
            was trained: the first of bfloat16, float16 (where the values fit its range) and float32 that stays within
            loss_tolerance and min_agreement. Of the two 16-bit types, the base model's own comes first.
        keep_adapter: Keep the adapter in a folder of its own beside the weights.
        loss_tolerance: Largest difference of the validation loss between adapter and merged model, in nats per token.
        min_agreement: Least share of validation tokens that both must find most likely.
        registry_url: Kubeflow Model Registry to register the model in, such as
            http://model-registry-service.kubeflow:8080; empty registers nowhere.
        registered_model: Name to register it under; its version is the hash of its content.
        plan: The pipeline's parameters and recipe that the run was started with, so that the model card can repeat it.
        settings: Settings by name that take precedence over the parameters above (the card's section of the recipe).
        package_version: Version that compiled the pipeline; the step refuses another one.
        eval_report: Figures of Evaluate, for the model card.
    """
    arguments = locals()
    from llm_finetune.components.serving.merge_export import step
    from llm_finetune.components.shared.card import card, lineage
    from llm_finetune.components.shared.metadata import recorded

    with card(package_version):
        inputs = {"model_config": model_config, "ft_result": ft_result, "eval_report": eval_report}
        facts = step.merge_export(
            model_config.path,
            ft_result.path,
            merged_model.path,
            model_summary.path,
            step.Settings.of(arguments),
            recorded(model_config),
            recorded(ft_result),
            recorded(eval_report) if eval_report else None,
            merged_model.uri,
            plan,
        )
        where = facts.export_uri or facts.hub_commit or merged_model.uri
        merged_model.metadata.update(vars(facts) | {"where": where} | lineage(inputs))
