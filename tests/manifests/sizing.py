"""The sizing table of docs/cluster.md, from the estimate that Apply LoRA makes; run as a script, it writes it anew."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from llm_finetune.components.model.apply_lora.settings import Settings
from llm_finetune.components.model.apply_lora.step import apply_lora

DOCUMENT = Path(__file__).parents[2] / "docs/cluster.md"
START, END = "<!-- sizing -->\n", "<!-- /sizing -->"
# Usable memory as CUDA reports it, GiB; the recipes of overlays/gke/gpus say the same.
GPUS = {"L4, 24 GB": 22, "A100 or H100, 80 GB": 79}
# From the fastest to what takes the least memory: 4 bit costs a few per cent, checkpointing a second forward pass.
WAYS = [
    ("16 bit", {"gradient_checkpointing": "off"}, False),
    ("4 bit", {"gradient_checkpointing": "off"}, True),
    ("16 bit, checkpointing", {"gradient_checkpointing": "on"}, False),
    ("4 bit, checkpointing", {"gradient_checkpointing": "on"}, True),
    ("4 bit, checkpointing, batch_size 1", {"gradient_checkpointing": "on", "batch_size": 1}, True),
]


@dataclass(frozen=True)
class Model:
    """A well-known decoder: what its config.json says of its size."""

    name: str
    hidden: int
    mlp: int
    layers: int
    heads: int
    groups: int
    vocabulary: int
    tied: bool = False

    def write(self, folder: Path) -> Path:
        """Writes a Llama of this shape, as a reference to a model is: without weights."""
        config = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "intermediate_size": self.mlp, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.groups, "vocab_size": self.vocabulary, "tie_word_embeddings": self.tied,
        }  # fmt: skip
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        return folder


MODELS = [
    Model("TinyLlama 1.1B", 2048, 5632, 22, 32, 4, 32000),
    Model("Llama 3.2 3B", 3072, 8192, 28, 24, 8, 128256, tied=True),
    Model("Llama 3.1 8B", 4096, 14336, 32, 32, 8, 128256),
    Model("Qwen 2.5 14B", 5120, 13824, 48, 40, 8, 152064),
    Model("Qwen 2.5 32B", 5120, 27648, 64, 40, 8, 152064),
    Model("Llama 3.1 70B", 8192, 28672, 80, 64, 8, 128256),
]


def table() -> str:
    """Returns the table: for each model and GPU the fastest way that fits."""
    lines = [f"| model | weights in 16 bit | {' | '.join(GPUS)} |", f"|---|---|{'---|' * len(GPUS)}"]
    with tempfile.TemporaryDirectory() as scratch:
        for number, model in enumerate(MODELS):
            folder = model.write(Path(scratch) / str(number))
            needs = [(name, *_need(folder, settings, four_bit)) for name, settings, four_bit in WAYS]
            weights = f"{needs[0][2] * 2 / 2**30:.1f} GiB"
            cells = [
                next((f"{name}: {gib:.1f} GiB" for name, gib, _ in needs if gib <= memory), "does not fit one")
                for memory in GPUS.values()
            ]
            lines.append(f"| {model.name} | {weights} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _need(model: Path, settings: dict[str, object], four_bit: bool) -> tuple[float, int]:
    """Returns the estimated GiB of a training, and the model's parameters."""
    with tempfile.TemporaryDirectory() as scratch:
        places = (Path(scratch) / "lora", Path(scratch) / "summary.md")
        facts = apply_lora(model, *places, Settings.of(settings), load_in_4bit=four_bit)
    return facts.estimated_memory_gib, facts.total_parameters - facts.trainable_parameters


def written(document: str) -> str:
    """Returns the document with the table as it is now."""
    before, rest = document.split(START)
    return before + START + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
