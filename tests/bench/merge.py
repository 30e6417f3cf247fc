"""Memory and seconds of the merge from files against PEFT's `merge_and_unload` and a plain copy, in one run.

    python tests/bench/merge.py [--hidden 2048] [--layers 16] [--shards 8] [--rounds 3]
    python tests/bench/merge.py --tiny          # to see that the code runs

Each way runs in a process of its own, in turns; a figure is the median of its rounds. The goals: at most twice the
seconds of a plain copy of the base folder, and memory of twice the largest shard and 1 GiB, whatever the model.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
GIB = 2**30


def make(folder: Path, hidden: int, layers: int, shards: int) -> tuple[Path, Path]:
    """Writes a random bfloat16 Llama in shards, and an adapter for it; returns both folders."""
    import torch
    from accelerate.utils import set_module_tensor_to_device
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=4 * hidden, tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    block = (torch.randn(1 << 16) * 0.02).to(torch.bfloat16)
    for name, parameter in list(model.named_parameters()):
        values = block.repeat(-(-parameter.numel() // len(block)))[: parameter.numel()].view(parameter.shape)
        set_module_tensor_to_device(model, name, "cpu", values)
    size = sum(parameter.numel() * 2 for parameter in model.parameters())
    model.save_pretrained(folder / "base", max_shard_size=size // shards + 2 * 4 * hidden * hidden)
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules=TARGETS))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    adapted.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter"


def copy(base: Path, adapter: Path, folder: Path) -> None:
    """Copies the base."""
    shutil.copytree(base, folder, dirs_exist_ok=True)


def from_files(base: Path, adapter: Path, folder: Path) -> None:
    """Merges as Merge & Export does."""
    import torch

    from llm_finetune.components.serving.merge_export.merge import StreamingMerger

    StreamingMerger(base, adapter, load_in_4bit=False).write(folder, torch.bfloat16)


def in_memory(base: Path, adapter: Path, folder: Path) -> None:
    """Merges as PEFT's documentation does."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(folder)


WAYS = {"plain copy": copy, "from files": from_files, "merge_and_unload": in_memory}


def measured(way: str, base: Path, adapter: Path, folder: Path) -> dict[str, float]:
    """Runs a way in this process, its imports beforehand; returns its seconds and the peak of its memory in bytes."""
    import peft  # noqa: F401
    import transformers  # noqa: F401

    from llm_finetune.components.serving.merge_export import merge  # noqa: F401

    folder.mkdir()
    begun = time.monotonic()
    WAYS[way](base, adapter, folder)
    seconds = time.monotonic() - begun
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return {"seconds": seconds, "bytes": peak * 1024}


def in_own_process(way: str, base: Path, adapter: Path, folder: Path) -> dict[str, float]:
    """Runs a way in a process of its own, whose memory is that way's alone."""
    command = [sys.executable, __file__, "--one", way, str(base), str(adapter), str(folder)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Runs the bench; the last line printed is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny model, one round, one process: to see that the code runs"
    )
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        way, *folders = asked.one
        print(json.dumps(measured(way, *map(Path, folders))))
        return
    if asked.tiny:
        asked.hidden, asked.layers, asked.shards, asked.rounds = 64, 2, 2, 1
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        base, adapter = make(Path(scratch), asked.hidden, asked.layers, asked.shards)
        shards = [file.stat().st_size for file in base.glob("*.safetensors")]
        for _ in range(asked.rounds):
            for way in WAYS:
                folder = Path(scratch) / "out"
                found[way].append((measured if asked.tiny else in_own_process)(way, base, adapter, folder))
                shutil.rmtree(folder)
    medians = {
        way: {name: statistics.median(round_[name] for round_ in rounds) for name in ("seconds", "bytes")}
        for way, rounds in found.items()
    }
    print(f"{sum(shards) / 1e9:.2f} GB in {len(shards)} shards, the largest {max(shards) / 1e9:.2f} GB")
    for way, median in medians.items():
        print(f"{way:<18}{median['seconds']:8.2f} s {median['bytes'] / GIB:8.2f} GiB")
    ratio = medians["from files"]["seconds"] / medians["plain copy"]["seconds"]
    saved = medians["from files"]["bytes"] / medians["merge_and_unload"]["bytes"]
    flat = medians["from files"]["bytes"] <= 2 * max(shards) + GIB
    print(
        json.dumps({"seconds_of_copy": round(ratio, 2), "memory_of_peft": round(saved, 2), "ok": ratio <= 2 and flat})
    )


if __name__ == "__main__":
    main()
