"""Training speed of Fine-Tune LoRA against the simple way and TRL's defaults, on the same model and documents.

    python tests/bench/train_gpu.py [--shape 1.1b] [--samples 320] [--nf4] [--checkpointing] [--ways simple,trl,ours,unsloth]
    python tests/bench/train_gpu.py --shape tiny --steps 2      # a random toy on any machine, to see that the code runs

Weights are random, of the shape of TinyLlama (1.1b) or Llama 3.1 (8b, vocabulary 128k). Documents are as long as
Alpaca's (log-normal, mean 104 tokens, 24 to 1024), 60 % of each supervised. LoRA r 16 on q, k, v, o, without dropout.
Every way takes about the same number of documents per optimizer step and runs in a process of its own. Unsloth is
measured where it is installed, which takes an environment of its own, since it pins other releases of TRL and
transformers; `compiled` is our way behind torch.compile, `unfused` without Liger.

Model FLOPs per real token: 4 N + 6 P + 6 L d s, with N the parameters of the frozen matrix products (head included,
embedding not), P the trainable ones, L the layers, d the hidden width and s the documents' mean length weighted by
length; recomputed and padded work counts as none. MFU is against 989 TFLOP/s, an H100's dense bfloat16.
"""

import argparse
import importlib.util
import json
import multiprocessing
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

PEAK_FLOPS = 989e12
GOALS = {"1.1b": 96_000, "8b": 12_500}
LOSS_TOLERANCE = 5e-4  # relative; the loss of one batch, in bfloat16
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 400},
    "1.1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
             "num_key_value_heads": 4, "vocab_size": 32000},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip


def documents(count: int, vocabulary: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Returns random documents of Alpaca-like length whose last 60 % are supervised."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        length = min(max(round(generator.lognormvariate(4.36, 0.75)), 24), 1024)
        ids = [generator.randrange(4, vocabulary) for _ in range(length)]
        prompt = round(length * 0.4)
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return rows


def write_model(shape: str, folder: Path) -> dict[str, Any]:
    """Writes a random model, a tokenizer and the adapter's configuration; returns what of them decides FLOPs."""
    import torch
    from peft import LoraConfig
    from tiny import tiny_tokenizer
    from transformers import AutoModelForCausalLM, LlamaConfig

    from llm_finetune.components.shared.modeling.architecture import add_adapter, empty_model, model_shape

    torch.manual_seed(1)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=2048, tie_word_embeddings=False)
    gpu = torch.cuda.is_available()
    with torch.device("cuda" if gpu else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if gpu else torch.float32)
    model.save_pretrained(folder / "model")
    tiny_tokenizer(folder / "model")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
    lora.save_pretrained(folder / "lora")
    total = sum(parameter.numel() for parameter in model.parameters())
    products = total - model.get_input_embeddings().weight.numel()
    adapter, _ = add_adapter(empty_model(folder / "model"), lora)
    return {
        "products": products, "config": SHAPES[shape], "shape": vars(model_shape(model)), "adapter": vars(adapter),
    }  # fmt: skip


def flops_per_token(facts: dict[str, Any], rows: list[dict[str, list[int]]]) -> float:
    """Returns the model FLOPs of one real token."""
    lengths = [len(row["input_ids"]) for row in rows]
    weighted = sum(length**2 for length in lengths) / sum(lengths)
    config = facts["config"]
    attention = 6 * config["num_hidden_layers"] * config["hidden_size"] * weighted
    return float(4 * facts["products"] + 6 * facts["adapter"]["trainable"] + attention)


def in_this_process(function: Any, *arguments: Any) -> Any:
    """Runs a function here: on a toy, starting processes would take most of the time."""
    return function(*arguments)


def in_process(function: Any, *arguments: Any) -> Any:
    """Runs a function in a fresh process, so that ways share neither memory nor patches."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = {"error": f"the process ended with exit code {process.exitcode}"}
    process.join()
    return result


def _send(sender: Any, function: Any, arguments: tuple[Any, ...]) -> None:
    try:
        sender.send(function(*arguments))
    except Exception as error:
        import traceback

        traceback.print_exc()
        sender.send({"error": f"{type(error).__name__}: {error}"[:300]})


def run_way(options: dict[str, Any]) -> dict[str, Any]:
    """Measures one way in this process."""
    if options["way"] == "unsloth":
        if not importlib.util.find_spec("unsloth"):
            return {"skipped": "unsloth is not installed"}
        importlib.import_module("unsloth")  # it changes transformers, TRL and PEFT, and wants to come first
    from train_ways import Job, measure

    return measure(Job(**options))


def estimated_gib(facts: dict[str, Any], tokens: float, nf4: bool, checkpointing: bool) -> float:
    """Returns the memory that apply_lora would print for our way."""
    from llm_finetune.components.shared.modeling.architecture import liger_obstacle, varlen_supports_gqa
    from llm_finetune.components.shared.modeling.memory import AdapterShape, ModelShape, TrainingPlan, estimate

    plan = TrainingPlan(
        round(tokens), checkpointing, nf4, fused=not liger_obstacle("llama"), grouped_queries=varlen_supports_gqa()
    )
    return estimate(ModelShape(**facts["shape"]), AdapterShape(**facts["adapter"]), plan).gib


def main() -> int:
    """Runs the ways, prints the table and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--ways", default="simple,trl,ours,unsloth", help="those, unfused and compiled")
    parser.add_argument("--samples", type=int, default=320, help="documents per optimizer step")
    parser.add_argument("--seconds", type=float, default=15.0, help="time to measure each way for, at least")
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps to measure, at least")
    parser.add_argument("--warm-up", type=int, default=3, help="optimizer steps before the clock starts")
    parser.add_argument("--nf4", action="store_true", help="base in 4 bit")
    parser.add_argument("--checkpointing", action="store_true", help="our way with checkpointing")
    chosen = parser.parse_args()
    tiny = chosen.shape == "tiny"
    run = in_this_process if tiny else in_process
    rows = documents(64 if tiny else 12_000, SHAPES[chosen.shape]["vocab_size"])
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        folder = Path(scratch)
        facts = run(write_model, chosen.shape, folder)
        if "error" in facts:
            raise SystemExit(facts["error"])
        options = {
            "model": folder / "model", "lora": folder / "lora", "documents": rows,
            "samples": 16 if tiny else chosen.samples, "seconds": 0.0 if tiny else chosen.seconds,
            "steps": chosen.steps, "nf4": chosen.nf4, "checkpointing": chosen.checkpointing,
        }  # fmt: skip
        results = []
        for way in chosen.ways.split(","):
            warm_up = 1 if tiny or way == "simple" else chosen.warm_up
            result = run(run_way, {**options, "way": way, "warm_up": warm_up})
            results.append({"way": way, **result})
            print(json.dumps(results[-1]), flush=True)
    return report(chosen, facts, flops_per_token(facts, rows), results)


def report(chosen: argparse.Namespace, facts: dict[str, Any], flops: float, results: list[dict[str, Any]]) -> int:
    """Prints the table and the JSON line; returns the exit code."""
    measured = {result["way"]: result for result in results if "loss" in result}
    print(
        f"\n{'way':10}{'real tok/s':>12}{'samples/s':>11}{'MFU %':>7}{'peak GiB':>10}{'loss':>11}{'samples/step':>14}"
    )
    for way, found in measured.items():
        found["mfu"] = found["tokens_per_second"] * flops / PEAK_FLOPS
        print(
            f"{way:10}{found['tokens_per_second']:12,.0f}{found['samples_per_second']:11,.1f}{100 * found['mfu']:7.1f}"
            f"{found['peak_gib']:10.1f}{found['loss']:11.5f}{found['samples_per_step']:14.1f}"
        )
    losses = [found["loss"] for found in measured.values()]
    parity = max(losses) / min(losses) - 1 if losses else float("inf")
    own = measured.get("ours")
    summary: dict[str, Any] = {
        "shape": chosen.shape, "nf4": chosen.nf4, "loss_difference": parity, "ways": measured,
        "ratios": {way: own["tokens_per_second"] / found["tokens_per_second"] for way, found in measured.items() if own},
        "skipped": {result["way"]: result["skipped"] for result in results if "skipped" in result},
        "failed": [result for result in results if "error" in result],
    }  # fmt: skip
    if own:
        micro = own["tokens_per_step"] / own["micro_batches"]
        summary["estimated_gib"] = estimated_gib(facts, micro, chosen.nf4, chosen.checkpointing)
        summary["goal"] = GOALS.get(chosen.shape)
        summary["goal_reached"] = own["tokens_per_second"] >= GOALS.get(chosen.shape, 0)
    summary["ok"] = own is not None and not summary["failed"] and parity <= LOSS_TOLERANCE
    print(json.dumps(summary))
    return 0 if summary["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
