"""The pipeline: from a dataset and a base model to a served, fine-tuned model."""

from importlib.metadata import version

from kfp import dsl

from llm_finetune.components.data.filter_clean.component import filter_clean
from llm_finetune.components.data.format_sft.component import format_sft
from llm_finetune.components.data.load_dataset.component import load_dataset
from llm_finetune.components.data.train_val_split.component import train_val_split
from llm_finetune.components.evaluation.evaluate.component import evaluate
from llm_finetune.components.evaluation.quality_gate.component import quality_gate
from llm_finetune.components.model.apply_lora.component import apply_lora
from llm_finetune.components.model.load_model.component import load_model
from llm_finetune.components.serving.merge_export.component import merge_export
from llm_finetune.components.serving.vllm_serve.component import vllm_serve
from llm_finetune.components.tokens.tokenize.component import tokenize
from llm_finetune.components.training.finetune_lora.component import finetune_lora
from llm_finetune.pipelines.cluster import DATA, MODEL, SMALL, TRAIN, on_gpu, place, with_hub_token
from llm_finetune.pipelines.recipe.component import check_recipe
from llm_finetune.pipelines.recipe.wiring import settings_of

VERSION = version("llm-finetune")
TEMPLATE = "### Instruction:\\n{instruction}\\n\\n### Input:\\n{input}\\n\\n### Response:\\n{output}"


@dsl.pipeline(
    name="llm-finetune",
    display_name="LLM fine-tune",
    description="Fine-tunes an open LLM with LoRA, evaluates it against its base and serves it with vLLM.",
)
def finetune(
    source_type: str = "huggingface",
    hf_dataset: str = "tatsu-lab/alpaca",
    jsonl_path: str = "",
    jsonl_url: str = "",
    max_samples: int = 1000,
    val_ratio: float = 0.1,
    template: str = TEMPLATE,
    model_name: str = "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    load_in_4bit: bool = True,
    max_length: int = 1024,
    lora_r: int = 16,
    lora_alpha: int = 32,
    num_epochs: int = 3,
    batch_size: int = 4,
    learning_rate: float = 2e-4,
    seed: int = 42,
    gate_rules: str = "loss_delta < 0",
    deployment_name: str = "llm-finetune-v1",
    serve_target: str = "kserve",
    namespace: str = "",
    gpu_type: str = "nvidia.com/gpu",
    gpu_count: str = "1",
    recipe: dict = {},
):
    """Fine-tunes an open LLM with LoRA, evaluates it against its base and serves it with vLLM.

    Args:
        source_type: Where the dataset is: huggingface, jsonl_url or jsonl_path.
        hf_dataset: Dataset on the Hugging Face Hub (source_type huggingface).
        jsonl_path: File on a mounted volume or in an object store, s3:// or gs:// (source_type jsonl_path).
        jsonl_url: https:// address of a file (source_type jsonl_url).
        max_samples: Rows to read; 0 reads all.
        val_ratio: Share of the rows kept for validation.
        template: How a row becomes prompt and completion; 'chat' uses the model's own chat template.
        model_name: Base model: Hub id, or folder on a mounted volume.
        load_in_4bit: Keep the frozen weights in 4 bit while training (QLoRA).
        max_length: Most tokens in a row.
        lora_r: Rank of the adapter.
        lora_alpha: Scale of the adapter.
        num_epochs: Passes over the training rows.
        batch_size: Rows per optimizer step and GPU.
        learning_rate: Peak learning rate.
        seed: Seed of split, packing, training and evaluation.
        gate_rules: What the tuned model must reach to be deployed, such as 'loss_delta < 0, tuned_stop_rate >= 0.9'.
        deployment_name: Name of the InferenceService, and the model name that clients ask for.
        serve_target: kserve deploys here, manifest only writes the YAML, local starts a server in the step.
        namespace: Namespace to deploy to; empty is the run's own.
        gpu_type: Resource name of the GPUs.
        gpu_count: GPUs for training and for the server, as text.
        recipe: Every other setting, a section per card, such as {"finetune_lora": {"warmup_ratio": 0.1}}.
    """
    parameters = {name: value for name, value in locals().items() if name != "recipe"}
    checked = place(check_recipe(parameters=parameters, recipe=recipe, package_version=VERSION), "Check Recipe", SMALL)

    def given(card: str) -> dict:
        """Returns a card's settings: its pipeline parameters by wire, the rest from the checked recipe."""
        return {**settings_of(card, parameters), "settings": checked.outputs[card], "package_version": VERSION}

    raw = place(load_dataset(**given("load_dataset")), "Load Dataset", DATA, retries=2)
    clean = place(filter_clean(raw_dataset=raw.outputs["raw_dataset"], **given("filter_clean")), "Filter & Clean", DATA)
    split = place(
        train_val_split(clean_dataset=clean.outputs["clean_dataset"], **given("train_val_split")),
        "Train/Val Split",
        DATA,
    )
    sft = place(
        format_sft(
            train_dataset=split.outputs["train_dataset"],
            val_dataset=split.outputs["val_dataset"],
            **given("format_sft"),
        ),
        "Format for SFT",
        DATA,
    )
    base = place(load_model(**given("load_model")), "Load Base Model", MODEL, retries=2)
    tokens = place(
        tokenize(
            train_sft=sft.outputs["train_sft"],
            val_sft=sft.outputs["val_sft"],
            model_config=base.outputs["model_config"],
            **given("tokenize"),
        ),
        "Tokenize",
        DATA,
    )
    lora = place(apply_lora(model_config=base.outputs["model_config"], **given("apply_lora")), "Apply LoRA", MODEL)
    tuned = place(
        finetune_lora(
            model_config=base.outputs["model_config"],
            lora_config=lora.outputs["lora_config"],
            train_tokens=tokens.outputs["train_tokens"],
            val_tokens=tokens.outputs["val_tokens"],
            **given("finetune_lora"),
        ),
        "Fine-Tune LoRA",
        TRAIN,
    )
    on_gpu(tuned, gpu_type, gpu_count)
    report = place(
        evaluate(
            model_config=base.outputs["model_config"],
            ft_result=tuned.outputs["ft_result"],
            val_tokens=tokens.outputs["val_tokens"],
            val_sft=sft.outputs["val_sft"],
            **given("evaluate"),
        ),
        "Evaluate",
        TRAIN,
    )
    on_gpu(report, gpu_type, "1")
    gate = place(
        quality_gate(eval_report=report.outputs["eval_report"], **given("quality_gate")),
        "Quality Gate",
        SMALL,
        cached=False,
    )
    with dsl.If(gate.outputs["Output"] == True, name="gate-open"):  # noqa: E712 - KFP compares a channel with a constant
        merged = place(
            merge_export(
                model_config=base.outputs["model_config"],
                ft_result=tuned.outputs["ft_result"],
                eval_report=report.outputs["eval_report"],
                **given("merge_export"),
            ),
            "Merge & Export",
            TRAIN,
        )
        place(
            vllm_serve(merged_model=merged.outputs["merged_model"], **given("vllm_serve")),
            "vLLM Serve",
            SMALL,
            cached=False,
        )
    for task in (raw, base, merged):
        with_hub_token(task)
