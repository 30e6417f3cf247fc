import itertools
import random

import pyarrow as pa
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from llm_finetune.components.shared import tables

END = 2
ROWS = 12
LISTS = pa.list_(pa.int32())


def _write(path, table):
    with tables.ShardWriter(path, table.schema) as writer:
        writer.write(table)


def _write_adapter(base, folder, ends):
    """Writes an adapter with random weights; returns the tokenizer beside it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(1)
    tuned = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    )
    tuned.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(eos_token_id=ends, pad_token_id=3).save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A tiny base, an adapter with random weights (so that base and tuned differ), and 12 validation rows."""
    folder = tmp_path_factory.mktemp("evaluate")
    base = tiny_model(folder / "base")
    tokenizer = _write_adapter(base, folder / "ft", ends=[END])
    generator = random.Random(3)
    rows = []
    for index in range(ROWS):
        prompt = [generator.randrange(4, 300) for _ in range(generator.randrange(2, 12))]
        completion = [*tokenizer(f'{{"n": "{index}"}}')["input_ids"], END]
        rows.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion, "row": index})
    tokens = pa.Table.from_pylist(rows, pa.schema([("input_ids", LISTS), ("labels", LISTS), ("row", pa.int64())]))
    texts = pa.table(
        {
            "prompt": [f"<prompt {i}>" for i in range(ROWS)],
            "completion": ["-"] * ROWS,
            "source": ["web" if i % 3 else "book" for i in range(ROWS)],
        }
    )
    documents = [[4 + i, 5 + i, 6 + i, END] for i in range(6)]
    rows_packed = [list(itertools.chain(*part)) for part in (documents[:4], documents[4:])]
    packed = pa.table(
        {
            "input_ids": pa.array(rows_packed, LISTS),
            "labels": pa.array(rows_packed, LISTS),
            "seq_lengths": pa.array([[4] * 4, [4] * 2], LISTS),
        }
    )
    for name, table in (("tokens", tokens), ("sft", texts), ("train", packed)):
        _write(folder / name, table)
    return {
        "model_config": base,
        "ft_result": folder / "ft",
        "val_tokens": folder / "tokens",
        "val_sft": folder / "sft",
        "train_tokens": folder / "train",
    }


@pytest.fixture(scope="session")
def servable(inputs, tmp_path_factory):
    """The same rows for a base that vLLM on a CPU takes; of every forty tokens or so one ends an answer."""
    folder = tmp_path_factory.mktemp("servable")
    base = tiny_model(folder / "base", head=32)
    GenerationConfig(repetition_penalty=9.0, eos_token_id=50).save_pretrained(base)
    _write_adapter(base, folder / "ft", ends=list(range(4, 14)))
    return inputs | {"model_config": base, "ft_result": folder / "ft"}


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    """Computes in float32 on every processor: in bfloat16, batch size and engine change the rounding."""
    monkeypatch.setattr("llm_finetune.components.evaluation.evaluate.models.fast_dtype", lambda: torch.float32)


@pytest.fixture
def evaluated(inputs, tmp_path):
    """Evaluates with some settings; the outputs lie in tmp_path as `examples` and `page.html`."""
    from llm_finetune.components.evaluation.evaluate import step

    def run(**settings):
        changed = {name: settings.pop(name) for name in inputs if name in settings}
        return step.evaluate(
            **{**inputs, **changed},
            eval_examples=tmp_path / "examples",
            eval_page=tmp_path / "page.html",
            settings=step.Settings(**settings),
        )

    return run
