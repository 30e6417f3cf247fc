"""A local run notices changed data: what pins it is part of the cards' settings."""

import hashlib

import pytest

from llm_finetune.components.data.load_dataset import hub
from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.local.pins import pinned
from llm_finetune.pipelines.recipe.files import RunPlan
from llm_finetune.pipelines.recipe.step import check_recipe

COMMIT = "c" * 40


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(name)
    monkeypatch.setattr(hub, "resolved", lambda dataset, revision: (COMMIT, ""))
    return tmp_path


def sections(parameters: dict, recipe: dict, notes: list[str] | None = None) -> dict:
    plan = pinned(RunPlan(parameters, recipe), (notes if notes is not None else []).append)
    assert plan.parameters == parameters
    return plan.recipe


def files(path: str, **more) -> dict:
    return {"source_type": "jsonl_path", "jsonl_path": path, **more}


def test_all_local_files_are_pinned_by_content(folder):
    both = f"{sha256('a')},{sha256('b')}"
    assert sections(files(f"{folder}/a.jsonl"), {}) == {"load_dataset": {"sha256": sha256("a")}}
    assert sections(files(f"{folder}/*.jsonl"), {})["load_dataset"]["sha256"] == both
    assert sections(files(f"{folder}/a.jsonl, {folder}/b.jsonl"), {})["load_dataset"]["sha256"] == both
    (folder / "b.jsonl").write_text("changed")
    assert sections(files(f"{folder}/*.jsonl"), {})["load_dataset"]["sha256"] != both
    own = {"load_dataset": {"sha256": "0" * 64}}
    assert sections(files(f"{folder}/a.jsonl"), own) == own
    assert sections(files(f"{folder}/none.jsonl"), {}) == {}


def test_members_of_mixtures_and_evaluation_sets_are_pinned(folder):
    recipe = {
        "load_dataset": {"mixture": [{"path": f"{folder}/a.jsonl", "weight": 2.0}, {"hf_dataset": "org/data"}]},
        "filter_clean": {"eval_sets": [f"{folder}/b.jsonl", "org/test", {"jsonl_path": f"{folder}/a.jsonl",
                                       "source_type": "jsonl_path", "max_samples": 3}, "s3://bucket/x.jsonl"]},
    }  # fmt: skip
    notes: list[str] = []
    found = sections({"source_type": "huggingface"}, recipe, notes)
    assert found["load_dataset"]["mixture"] == [
        {"path": f"{folder}/a.jsonl", "weight": 2.0, "sha256": sha256("a")},
        {"hf_dataset": "org/data", "hf_revision": COMMIT},
    ]
    local, on_hub, chosen, remote = found["filter_clean"]["eval_sets"]
    assert local == files(f"{folder}/b.jsonl", sha256=sha256("b"), max_samples=0)
    assert (on_hub["hf_dataset"], on_hub["hf_split"], on_hub["hf_revision"]) == ("org/test", "test", COMMIT)
    assert chosen == files(f"{folder}/a.jsonl", sha256=sha256("a"), max_samples=3)
    assert remote == "s3://bucket/x.jsonl" and len(notes) == 1 and "s3://bucket/x.jsonl is not pinned" in notes[0]
    check_recipe({"source_type": "huggingface"}, found)


def test_a_hub_dataset_is_pinned_to_the_commit_that_its_revision_means_now(folder, monkeypatch):
    chosen = {"source_type": "huggingface", "hf_dataset": "org/data"}
    assert sections(chosen, {"load_dataset": {"hf_revision": "v1"}}) == {"load_dataset": {"hf_revision": COMMIT}}
    assert sections(chosen, {"load_dataset": {"hf_revision": "d" * 40}})["load_dataset"]["hf_revision"] == "d" * 40

    def offline(dataset: str, revision: str) -> None:
        raise UserError("the Hub could not be reached")

    monkeypatch.setattr(hub, "resolved", offline)
    assert sections(chosen, {}) == {}


def test_files_elsewhere_are_named_without_their_secrets(folder):
    notes: list[str] = []
    sections({"source_type": "jsonl_url", "jsonl_url": "https://me:pass@host/x.jsonl?token=secret"}, {}, notes)
    assert notes[0].startswith("https://host/x.jsonl is not pinned") and "--resume" in notes[0]
