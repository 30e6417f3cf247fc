"""Documents that share a row do not see each other: each has the loss and the gradient that it has alone."""

import itertools
from pathlib import Path

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model
from token_rows import documents
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llm_finetune.components.training.finetune_lora.build import build_trainer
from llm_finetune.components.training.finetune_lora.settings import Settings

ROWS = documents(12, seed=3)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tiny_model(tmp_path_factory.mktemp("base") / "model")
    LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM").save_pretrained(folder / "lora")
    return folder


def packed(groups: list[list[dict]]) -> list[dict]:
    return [
        {
            "input_ids": [token for row in group for token in row["input_ids"]],
            "labels": [label for row in group for label in row["labels"]],
            "seq_lengths": [len(row["input_ids"]) for row in group],
        }
        for group in groups
    ]


def away_from_zero(model) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)


@pytest.fixture(scope="module")
def trainer(base, tmp_path_factory):
    """The card's own trainer for packed rows: its model, its attention, its collator, its loss."""
    rows = datasets.Dataset.from_list([{**row, "length": len(row["input_ids"])} for row in packed([ROWS])])
    made = build_trainer(
        base, base / "lora", AutoConfig.from_pretrained(base), rows, rows, AutoTokenizer.from_pretrained(base),
        tmp_path_factory.mktemp("out"), Settings(dtype="float32"), packed=True, load_in_4bit=False,
    )  # fmt: skip
    away_from_zero(made.model)
    made.model.train()
    return made


@pytest.fixture(scope="module")
def plain(base):
    """The same weights in a model that knows nothing of this suite."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    away_from_zero(model)
    return model.train()


def losses(trainer, groups: list[list[dict]]) -> list[float]:
    """Returns the summed loss of each document of one micro-batch of packed rows, in their order."""
    batch = trainer.data_collator(packed(groups))
    bounds = batch["cu_seq_lens_q"].tolist()
    found = []
    for first, last in itertools.pairwise(bounds):
        labels = batch["labels"].clone()
        labels[0, :first], labels[0, last:] = -100, -100
        with torch.no_grad():
            found.append(float(trainer.compute_loss(trainer.model, {**batch, "labels": labels}, num_items_in_batch=1)))
    return found


def alone(model, row: dict) -> torch.Tensor:
    logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
    labels = torch.tensor(row["labels"][1:])
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")


@pytest.mark.parametrize("groups", [[ROWS], [ROWS[:5], ROWS[5:7], ROWS[7:]]], ids=["one row", "three rows"])
def test_a_packed_document_has_the_loss_that_it_has_alone(trainer, plain, groups):
    with torch.no_grad():
        wanted = [float(alone(plain, row)) for row in ROWS]
    assert losses(trainer, groups) == pytest.approx(wanted, rel=1e-5)


def test_other_neighbours_change_nothing(trainer):
    own = ROWS[0]
    first = losses(trainer, [[own, *ROWS[1:4]]])[0]
    assert losses(trainer, [[*ROWS[4:8], own]])[-1] == pytest.approx(first, rel=1e-6)
    assert losses(trainer, [[ROWS[9], own, ROWS[10]]])[1] == pytest.approx(first, rel=1e-6)


def test_gradients_are_those_of_a_padded_batch_weighted_by_tokens(trainer, plain):
    tokens = sum(label != -100 for row in ROWS for label in row["labels"][1:])
    trainer.model.zero_grad()
    trainer.compute_loss(
        trainer.model, trainer.data_collator(packed([ROWS[:7], ROWS[7:]])), num_items_in_batch=tokens
    ).backward()
    plain.zero_grad()
    longest = max(len(row["input_ids"]) for row in ROWS)
    ids, mask, labels = (
        torch.tensor([values + [fill] * (longest - len(values)) for values in column])
        for column, fill in (
            ([row["input_ids"] for row in ROWS], 3),
            ([[1] * len(row["input_ids"]) for row in ROWS], 0),
            ([row["labels"] for row in ROWS], -100),
        )
    )
    logits = plain(input_ids=ids, attention_mask=mask).logits[:, :-1]
    nll = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    (nll / tokens).backward()
    packed_gradient, padded_gradient = (
        torch.cat([p.grad.flatten() for n, p in model.named_parameters() if "lora_" in n]).double()
        for model in (trainer.model, plain)
    )
    assert torch.nn.functional.cosine_similarity(packed_gradient, padded_gradient, dim=0) >= 0.9999
    assert packed_gradient.norm() == pytest.approx(float(padded_gradient.norm()), rel=1e-4)


def test_attention_across_the_boundaries_would_be_seen(trainer, plain):
    """The measure itself: without the boundaries, the same row gives other losses."""
    batch = trainer.data_collator(packed([ROWS]))
    with torch.no_grad():
        leaked = plain(input_ids=batch["input_ids"]).logits[0, :-1]
        wanted = [float(alone(plain, row)) for row in ROWS]
    nll = torch.nn.functional.cross_entropy(leaked, batch["labels"][0, 1:], ignore_index=-100, reduction="sum")
    assert float(nll) != pytest.approx(sum(wanted), rel=1e-3)
