"""The pipeline: from a dataset and a base model to a served, fine-tuned model."""

from importlib.metadata import version
from typing import Any

from kfp import dsl

from llm_finetune.components.data.data_report.component import data_report
from llm_finetune.components.data.filter_clean.component import filter_clean
from llm_finetune.components.data.format_sft.component import format_sft
from llm_finetune.components.data.load_dataset.component import load_dataset
from llm_finetune.components.data.train_val_split.component import train_val_split
from llm_finetune.components.evaluation.evaluate.component import evaluate
from llm_finetune.components.evaluation.quality_gate.component import quality_gate
from llm_finetune.components.model.apply_lora.component import apply_lora
from llm_finetune.components.model.load_model.component import load_model
from llm_finetune.components.run.check_recipe.component import check_recipe
from llm_finetune.components.run.check_recipe.wiring import FREE_TEXT, PARAMETERS, settings_of
from llm_finetune.components.run.pin_sources.component import pin_sources
from llm_finetune.components.run.report.component import report
from llm_finetune.components.serving.merge_export.component import merge_export
from llm_finetune.components.serving.vllm_serve.component import vllm_serve
from llm_finetune.components.tokens.tokenize.component import tokenize
from llm_finetune.components.training.finetune_lora.component import finetune_lora
from llm_finetune.pipelines.cluster import NETWORK_RETRIES, Cluster
from llm_finetune.pipelines.options import ClusterOptions

VERSION = version("llm-finetune")
TEMPLATE = "### Instruction:\\n{instruction}\\n\\n### Input:\\n{input}\\n\\n### Response:\\n{output}"


def finetune_pipeline(options: ClusterOptions) -> Any:
    """Makes the pipeline for a cluster.

    Args:
        options: What was chosen for the cluster.

    Returns:
        The pipeline, as KFP's compiler takes it.
    """
    cluster = Cluster(options)
    place = cluster.place

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
            jsonl_path: File at s3:// or gs://, or under /mnt/data, the volume of data_claim (source_type jsonl_path).
            jsonl_url: https:// address of a file (source_type jsonl_url).
            max_samples: Rows to read; 0 reads all.
            val_ratio: Share of the rows kept for validation.
            template: How a row becomes prompt and completion; 'chat' uses the model's own chat template.
            model_name: Base model: Hub id, or folder under /mnt/model-cache, the volume of model_cache.
            load_in_4bit: Keep the frozen weights in 4 bit while training (QLoRA).
            max_length: Most tokens in a row.
            lora_r: Rank of the adapter.
            lora_alpha: Scale of the adapter.
            num_epochs: Passes over the training rows.
            batch_size: Rows per optimizer step and GPU.
            learning_rate: Peak learning rate.
            seed: Seed of split, packing, training and evaluation.
            gate_rules: What the tuned model must reach to be deployed, such as "loss_delta < 0, tuned_stop_rate > 0.9".
            deployment_name: Name of the InferenceService, and the model name that clients ask for.
            serve_target: kserve deploys here, manifest only writes the YAML, local starts a server in the step.
            namespace: Namespace to deploy to; empty is the run's own.
            gpu_type: Resource name of the GPUs.
            gpu_count: GPUs for training and for the server, as text.
            recipe: Every other setting, a section per card, such as {"finetune_lora": {"warmup_ratio": 0.1}}.
        """
        parameters = {name: value for name, value in locals().items() if name in PARAMETERS}
        end = report(run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER, package_version=VERSION)
        place(end, "Report", "small", cached=False)
        with dsl.ExitHandler(end, name="fine-tune"):
            checked = check_recipe(
                parameters={name: value for name, value in parameters.items() if name not in FREE_TEXT},
                **{name: parameters[name] for name in FREE_TEXT},
                recipe=recipe,
                checkpoint_root=cluster.checkpoint_root,
                package_version=VERSION,
            )
            place(checked, "Check Recipe", "small")
            pinned = pin_sources(
                **{
                    name: parameters[name]
                    for name in ("source_type", "hf_dataset", "jsonl_path", "jsonl_url", "model_name")
                },
                **{name: checked.outputs[name] for name in ("load_dataset", "filter_clean", "load_model", "plan")},
                package_version=VERSION,
            )
            place(pinned, "Pin Sources", "small", cached=False)
            chosen = checked.outputs | pinned.outputs

            def given(card: str) -> dict:
                """Returns a card's settings: its pipeline parameters by wire, the rest from the checked recipe."""
                return {**settings_of(card, parameters), "settings": chosen[card], "package_version": VERSION}

            raw = load_dataset(**given("load_dataset"))
            place(raw, "Load Dataset", "data", retries=NETWORK_RETRIES)
            clean = filter_clean(raw_dataset=raw.outputs["raw_dataset"], **given("filter_clean"))
            place(clean, "Filter & Clean", "data", retries=NETWORK_RETRIES)
            split = train_val_split(clean_dataset=clean.outputs["clean_dataset"], **given("train_val_split"))
            place(split, "Train/Val Split", "data")
            sft = format_sft(
                train_dataset=split.outputs["train_dataset"],
                val_dataset=split.outputs["val_dataset"],
                **given("format_sft"),
            )
            place(sft, "Format for SFT", "data")
            base = load_model(**given("load_model"), **cluster.model_store)
            place(base, "Load Base Model", "model", retries=NETWORK_RETRIES)
            tokens = tokenize(
                train_sft=sft.outputs["train_sft"],
                val_sft=sft.outputs["val_sft"],
                model_config=base.outputs["model_config"],
                **given("tokenize"),
            )
            place(tokens, "Tokenize", "data")
            data = data_report(
                raw_dataset=raw.outputs["raw_dataset"],
                clean_dataset=clean.outputs["clean_dataset"],
                **{name: split.outputs[name] for name in ("train_dataset", "val_dataset")},
                **{name: sft.outputs[name] for name in ("train_sft", "val_sft")},
                **{name: tokens.outputs[name] for name in ("train_tokens", "val_tokens")},
                **given("data_report"),
            )
            place(data, "Data Report", "data")
            lora = apply_lora(model_config=base.outputs["model_config"], **given("apply_lora"))
            place(lora, "Apply LoRA", "model")
            tuned = finetune_lora(
                model_config=base.outputs["model_config"],
                lora_config=lora.outputs["lora_config"],
                train_tokens=tokens.outputs["train_tokens"],
                val_tokens=tokens.outputs["val_tokens"],
                **given("finetune_lora"),
            )
            cluster.on_gpu(tuned, "Fine-Tune LoRA", gpu_type, gpu_count, chosen)
            eval_report = evaluate(
                model_config=base.outputs["model_config"],
                ft_result=tuned.outputs["ft_result"],
                val_tokens=tokens.outputs["val_tokens"],
                val_sft=sft.outputs["val_sft"],
                train_tokens=tokens.outputs["train_tokens"],
                **given("evaluate"),
            )
            cluster.on_gpu(eval_report, "Evaluate", gpu_type, chosen["evaluation_gpus"], chosen)
            gate = quality_gate(eval_report=eval_report.outputs["eval_report"], **given("quality_gate"))
            place(gate, "Quality Gate", "small", cached=False)
            with dsl.If(gate.outputs["Output"] == True, name="gate-open"):  # noqa: E712 - a channel
                merged = merge_export(
                    model_config=base.outputs["model_config"],
                    ft_result=tuned.outputs["ft_result"],
                    eval_report=eval_report.outputs["eval_report"],
                    plan=chosen["plan"],
                    **given("merge_export"),
                )
                place(merged, "Merge & Export", "train")
                served = vllm_serve(
                    merged_model=merged.outputs["merged_model"],
                    eval_report=eval_report.outputs["eval_report"],
                    **given("vllm_serve"),
                )
                place(served, "vLLM Serve", "small", cached=False)
            for task in (base, merged):
                cluster.with_model_cache(task, chosen)
            for task in (pinned, raw, clean):
                cluster.with_datasets(task, chosen)
            for task in (base, eval_report, merged):
                cluster.with_hub(task, chosen)
            for task in (tuned, merged):
                cluster.with_object_store(task, chosen)
            for task in (tuned, eval_report):
                cluster.with_api_keys(task, chosen)
            cluster.with_checkpoints(tuned, chosen)

    return finetune


finetune = finetune_pipeline(ClusterOptions())
