"""A run notices changed sources: what pins them is part of the cards' settings."""

import hashlib

import pytest

from llm_finetune.components.data.sources import hub
from llm_finetune.components.data.sources.source import Source
from llm_finetune.components.run.check_recipe.step import check_recipe, plan_of
from llm_finetune.components.run.pin_sources import step
from llm_finetune.components.shared.errors import UserError

COMMIT = "c" * 40


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(name)
    monkeypatch.setattr(hub, "resolve", lambda dataset, revision: (COMMIT, ""))
    monkeypatch.setattr(step, "commit_of", lambda model_name, revision: "")
    return tmp_path


def pinned(parameters: dict, recipe: dict) -> dict:
    """Pins what Check Recipe passes on; what comes out passes Check Recipe again."""
    parameters = {"model_name": "org/base"} | parameters
    found = step.pin_sources(parameters, check_recipe(parameters, recipe), plan_of(parameters, recipe))
    check_recipe(parameters, {card: found[card] for card in ("load_dataset", "filter_clean", "load_model")})
    return found


def files(path: str, **more) -> dict:
    return {"source_type": "jsonl_path", "jsonl_path": path, **more}


def test_all_local_files_are_pinned_by_content_which_the_model_card_shows(folder):
    both = f"{sha256('a')},{sha256('b')}"
    found = pinned(files(f"{folder}/a.jsonl"), {})
    assert found["load_dataset"] == {"sha256": sha256("a")} == found["plan"]["load_dataset"]
    assert pinned(files(f"{folder}/*.jsonl"), {})["load_dataset"]["sha256"] == both
    assert pinned(files(f"{folder}/a.jsonl, {folder}/b.jsonl"), {})["load_dataset"]["sha256"] == both
    (folder / "b.jsonl").write_text("changed")
    assert pinned(files(f"{folder}/*.jsonl"), {})["load_dataset"]["sha256"] != both
    own = {"load_dataset": {"sha256": "0" * 64}}
    assert pinned(files(f"{folder}/a.jsonl"), own)["load_dataset"] == own["load_dataset"]


def test_members_of_mixtures_and_evaluation_sets_are_pinned(folder, monkeypatch):
    monkeypatch.setattr(Source, "etag", lambda source: f"etag of {source.location}")
    recipe = {
        "load_dataset": {"mixture": [{"path": f"{folder}/a.jsonl", "weight": 2.0}, {"hf_dataset": "org/data"}]},
        "filter_clean": {"eval_sets": [f"{folder}/b.jsonl", "org/test", {"jsonl_path": f"{folder}/a.jsonl",
                                       "source_type": "jsonl_path", "max_samples": 3}, "s3://bucket/x.jsonl"]},
    }  # fmt: skip
    found = pinned({"source_type": "huggingface"}, recipe)
    assert (
        found["load_dataset"]["mixture"]
        == found["plan"]["load_dataset"]["mixture"]
        == [
            {"path": f"{folder}/a.jsonl", "weight": 2.0, "sha256": sha256("a")},
            {"hf_dataset": "org/data", "hf_revision": COMMIT},
        ]
    )
    local, on_hub, chosen, remote = found["filter_clean"]["eval_sets"]
    assert local == files(f"{folder}/b.jsonl", sha256=sha256("b"), max_samples=0)
    assert (on_hub["hf_dataset"], on_hub["hf_split"], on_hub["hf_revision"]) == ("org/test", "test", COMMIT)
    assert chosen == files(f"{folder}/a.jsonl", sha256=sha256("a"), max_samples=3)
    assert (remote["jsonl_url"], remote["etag"]) == ("s3://bucket/x.jsonl", "etag of s3://bucket/x.jsonl")
    assert "etag" not in found["plan"]["filter_clean"]["eval_sets"][3]  # no later run can be held to it


def test_a_hub_dataset_is_pinned_to_the_commit_that_its_revision_means_now(folder, monkeypatch):
    chosen = {"source_type": "huggingface", "hf_dataset": "org/data"}
    assert pinned(chosen, {"load_dataset": {"hf_revision": "v1"}})["load_dataset"] == {"hf_revision": COMMIT}
    assert pinned(chosen, {"load_dataset": {"hf_revision": "d" * 40}})["load_dataset"] == {"hf_revision": "d" * 40}


def test_files_elsewhere_are_told_apart_by_their_etags_and_no_secret_reaches_the_plan(folder, monkeypatch):
    seen = {"https://me:pass@host/x.jsonl?token=secret": "one", "https://host/y.jsonl": "two"}
    monkeypatch.setattr(Source, "etag", lambda source: seen[source.location])
    both = {"source_type": "jsonl_url", "jsonl_url": ",".join(seen)}
    found = pinned(both, {})
    assert list(found["load_dataset"]) == ["etag"] and "load_dataset" not in found["plan"]
    assert "secret" not in str(found["plan"])
    assert pinned(both, {}) == found
    seen["https://host/y.jsonl"] = "three"
    assert pinned(both, {})["load_dataset"]["etag"] != found["load_dataset"]["etag"]
    assert pinned({"source_type": "jsonl_url", "jsonl_url": "https://host/y.jsonl"}, {})["load_dataset"] == {
        "etag": "three"
    }


def test_a_base_model_on_the_hub_is_another_input_once_it_has_changed(folder, monkeypatch):
    monkeypatch.setattr(step, "commit_of", lambda model_name, revision: sha256(model_name + revision)[:40])
    found = pinned(files(f"{folder}/a.jsonl"), {"load_model": {"revision": "v1"}})
    assert found["load_model"] == {"revision": "v1", "commit": sha256("org/basev1")[:40]}
    assert found["plan"]["load_model"] == {"revision": "v1"}


def test_what_cannot_be_found_is_left_to_its_card_and_said(folder, monkeypatch, capsys):
    def offline(name: str, revision: str) -> None:
        raise UserError("the Hub could not be reached")

    monkeypatch.setattr(hub, "resolve", offline)
    monkeypatch.setattr(step, "commit_of", offline)
    found = pinned({"source_type": "huggingface", "hf_dataset": "org/data"}, {})
    assert (found["load_dataset"], found["load_model"]) == ({}, {})
    assert capsys.readouterr().out.splitlines() == ["not pinned: the Hub could not be reached"] * 2
    monkeypatch.setattr(Source, "etag", lambda source: "")
    assert pinned(files(f"{folder}/none.jsonl"), {})["load_dataset"] == {}
    pinned({"source_type": "jsonl_url", "jsonl_url": "https://me:pass@host/x.jsonl?token=secret"}, {})
    said = capsys.readouterr().out
    assert "https://host/x.jsonl has no ETag" in said and "secret" not in said
