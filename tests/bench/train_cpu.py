"""Training speed of Fine-Tune LoRA on a CPU against TRL's SFTTrainer, in float32 on the same model, rows and threads.

    python tests/bench/train_cpu.py [--rows even] [--documents 160] [--rounds 3] [--threads 2]
    python tests/bench/train_cpu.py --tiny      # a random toy, to see that the code runs

The model has the shape of SmolLM2-135M with random weights, LoRA r 16 on every linear layer, without dropout. Documents
are as long as Alpaca's (log-normal, mean about 104 tokens), or, with `--rows even`, of 70 to 110 tokens like the demo's
addresses; 60 % of each is supervised. TRL has its defaults but for bfloat16, which this suite does not use on a CPU
without it either: batches of 8, checkpointing. A third way is TRL without checkpointing. All three take every document
once per round, 8 per optimizer step, in turns in one process; a figure is the median of the rounds. The goal: 3 times
the real tokens per second of TRL's defaults, at the same loss.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

GOAL, LOSS_TOLERANCE, BATCH = 3.0, 1e-4, 8
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 400},
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3, "vocab_size": 49152},
}  # fmt: skip


def even_documents(count: int, vocabulary: int) -> list[dict[str, list[int]]]:
    """Returns random documents of 70 to 110 tokens whose last 60 % are supervised."""
    generator = random.Random(0)
    rows = []
    for _ in range(count):
        ids = [generator.randrange(4, vocabulary) for _ in range(generator.randint(70, 110))]
        prompt = round(len(ids) * 0.4)
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return rows


def write_model(shape: str, folder: Path) -> None:
    """Writes a random model, a tokenizer and the adapter's configuration."""
    import torch
    from peft import LoraConfig
    from tiny import tiny_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=2048, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tiny_tokenizer(folder / "model")
    LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM").save_pretrained(folder / "lora")


def stock(folder: Path, rows: list[dict[str, Any]], checkpointing: bool = True) -> Any:
    """TRL's SFTTrainer as it is, in float32."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(42)
    adapter = LoraConfig.from_pretrained(str(folder / "lora"))
    adapter.inference_mode = False
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    args = SFTConfig(
        output_dir=str(folder / "stock"), bf16=False, use_cpu=True, learning_rate=2e-4, disable_tqdm=True,
        report_to="none", seed=42, gradient_checkpointing=checkpointing, per_device_train_batch_size=BATCH,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    return SFTTrainer(
        get_peft_model(base, adapter), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def unchecked(folder: Path, rows: list[dict[str, Any]]) -> Any:
    """TRL's SFTTrainer without activation checkpointing."""
    return stock(folder, rows, checkpointing=False)


def ours(folder: Path, rows: list[dict[str, Any]]) -> Any:
    """The Fine-Tune LoRA card's own trainer, for rows that are not packed."""
    from datasets import Dataset
    from transformers import AutoConfig, AutoTokenizer

    from llm_finetune.components.training.finetune_lora.build import build_trainer
    from llm_finetune.components.training.finetune_lora.settings import Settings

    data = Dataset.from_list([{**row, "length": len(row["input_ids"])} for row in rows])
    return build_trainer(
        folder / "model", folder / "lora", AutoConfig.from_pretrained(folder / "model"), data, data,
        AutoTokenizer.from_pretrained(folder / "model"), folder / "ours", Settings(batch_size=BATCH, dtype="float32"),
        packed=False, load_in_4bit=False,
    )  # fmt: skip


class Way:
    """One trainer, run over all documents as often as it is asked."""

    def __init__(self, trainer: Any, rows: list[dict[str, Any]]) -> None:
        """Leaves nothing in the trainer's loop but training, and takes the loss of the first documents."""
        import torch
        from transformers.trainer_utils import IntervalStrategy, SaveStrategy

        self.trainer, self.tokens, self.padded = trainer, 0, 0
        trainer.args.num_train_epochs = 1
        trainer.args.eval_strategy, trainer.args.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
        trainer.args.logging_strategy = IntervalStrategy.NO
        first = rows[:BATCH]
        labels = sum(label != -100 for row in first for label in row["labels"][1:])
        with torch.no_grad():
            self.loss = float(
                trainer.compute_loss(trainer.model, trainer.data_collator(first), num_items_in_batch=labels)
            )
        self._step = trainer.training_step
        trainer.training_step = self._counted

    def round(self) -> dict[str, float]:
        """Trains one epoch and returns its rate and its time."""
        self.tokens = self.padded = 0
        used, begun = time.process_time(), time.perf_counter()
        self.trainer.train()
        seconds = time.perf_counter() - begun
        return {
            "tokens_per_second": self.tokens / seconds,
            "cpu_seconds": time.process_time() - used,
            "real_share": self.tokens / self.padded,
        }

    def _counted(self, model: Any, inputs: Any, *others: Any, **named: Any) -> Any:
        self.tokens += int(inputs["attention_mask"].sum())
        self.padded += inputs["attention_mask"].numel()
        return self._step(model, inputs, *others, **named)


def main() -> int:
    """Runs the ways, prints the table and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", choices=("alpaca", "even"), default="alpaca")
    parser.add_argument("--documents", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--ways", default="stock,unchecked,ours")
    parser.add_argument("--tiny", action="store_true")
    chosen = parser.parse_args()
    # As the local run sets it, for all ways: threads that wait give their core to others.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    import torch
    from train_gpu import documents

    torch.set_num_threads(chosen.threads)
    shape = "tiny" if chosen.tiny else "135m"
    make = even_documents if chosen.rows == "even" else documents
    rows = make(chosen.documents, SHAPES[shape]["vocab_size"])
    kinds = {"stock": stock, "unchecked": unchecked, "ours": ours}
    with tempfile.TemporaryDirectory() as scratch:
        write_model(shape, Path(scratch))
        ways = {name: Way(kinds[name](Path(scratch), rows), rows) for name in chosen.ways.split(",")}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(chosen.rounds):
            for name, way in ways.items():
                found[name].append(way.round())
                print(json.dumps({name: found[name][-1]}), flush=True)
    return report(chosen, ways, found)


def report(chosen: argparse.Namespace, ways: dict[str, Way], found: dict[str, list[dict[str, float]]]) -> int:
    """Prints the table and the JSON line; returns the exit code."""
    median = {
        name: {figure: statistics.median(run[figure] for run in runs) for figure in runs[0]}
        for name, runs in found.items()
    }
    print(f"\n{'way':12}{'real tok/s':>12}{'real share':>12}{'CPU seconds':>13}{'loss':>10}")
    for name, figures in median.items():
        print(
            f"{name:12}{figures['tokens_per_second']:12,.1f}{figures['real_share']:12.2f}"
            f"{figures['cpu_seconds']:13.1f}{ways[name].loss:10.5f}"
        )
    losses = [way.loss for way in ways.values()]
    rate = {name: figures["tokens_per_second"] for name, figures in median.items()}
    summary: dict[str, Any] = {
        "shape": "tiny" if chosen.tiny else "135m", "rows": chosen.rows, "threads": chosen.threads, "ways": median,
        "loss_difference": max(losses) / min(losses) - 1,
        "ratios": {name: rate["ours"] / other for name, other in rate.items()},
        "cpu_ratios": {name: figures["cpu_seconds"] / median["ours"]["cpu_seconds"] for name, figures in median.items()},
    }  # fmt: skip
    summary["goal_reached"] = summary["ratios"].get("stock", 0.0) >= GOAL
    summary["ok"] = summary["loss_difference"] <= LOSS_TOLERANCE and (chosen.tiny or summary["goal_reached"])
    print(json.dumps(summary))
    return 0 if summary["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
