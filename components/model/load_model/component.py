"""Load Base Model: brings a base model here, or pins it, and says what it is."""

from kfp import dsl

from llm_finetune.components.shared.images import data_component


@data_component()
def load_model(
    model_config: dsl.Output[dsl.Model],
    model_summary: dsl.Output[dsl.Markdown],
    model_name: str = "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    load_in_4bit: bool = True,
    cache_dir: str = "/tmp/hf_cache",
    revision: str = "",
    commit: str = "",
    store: str = "copy",
    settings: dict = {},
    package_version: str = "",
):
    """Brings the base model here, counts its parameters from the weights' headers and pins its revision.

    Only safetensors weights are taken, and no code from a model's repository is ever run. A token for gated or private
    models is read from the environment variable HF_TOKEN, which a mounted secret sets.

    Args:
        model_config: The base model's folder, or a pinned reference to it.
        model_summary: Architecture, parameters, context length, dtype, licence, size.
        model_name: Hub id (owner/name) or a folder, such as a mounted volume.
        load_in_4bit: Whether training keeps the frozen weights in 4 bit (NF4, QLoRA); the files stay as they are.
        cache_dir: Where downloads are kept; a volume here saves the next run the download.
        revision: Branch, tag or commit of a Hub id, or the sha256:... of a folder as an earlier run reported it. Empty
            takes the default branch, or the folder as it is; what was found is recorded.
        commit: What Pin Sources saw that revision means now. Nothing is done with it: a model that has changed on the
            Hub is another input by it, for which no earlier result is taken from the cache.
        store: copy puts the weights into the artifact; reference leaves them in cache_dir, or in the folder that
            model_name is, and pins them: later cards read them there, so it has to be a volume that they mount too.
        settings: Settings by name that take precedence over the parameters above (the card's section of the recipe).
        package_version: Version that compiled the pipeline; the step refuses another one.
    """
    arguments = locals()
    from llm_finetune.components.model.load_model import step
    from llm_finetune.components.shared.card import card, lineage

    with card(package_version):
        chosen = step.Settings.of(arguments)
        facts = step.load_model(model_config.path, model_summary.path, chosen)
        model_config.metadata.update(vars(facts) | lineage(origin=facts.origin()))
