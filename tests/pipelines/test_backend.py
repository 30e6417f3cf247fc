"""Every card on what a real backend hands it, through KFP's own executor, to the end."""

import copy
import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from backend import SESSION, Backend, as_stored, recording
from kfp import dsl
from kfp.dsl.executor import Executor
from kfp.dsl.types import artifact_types, type_annotations
from local_user import rows
from tiny import tiny_model

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.metadata import read_flag, read_metadata
from llm_finetune.pipelines import finetune as cards

CHAIN = (
    "check-recipe", "pin-sources", "load-dataset", "filter-clean", "train-val-split", "format-sft", "load-model",
    "tokenize", "data-report", "apply-lora", "finetune-lora", "evaluate", "quality-gate", "merge-export", "vllm-serve",
    "report",
)  # fmt: skip
FACES = {card: getattr(cards, card.replace("-", "_")) for card in CHAIN}
RECIPE = {
    "finetune_lora": {"evaluate_first": False, "dtype": "float32"},
    "evaluate": {"generate_samples": 2, "max_new_tokens": 4, "few_shot": 1},
    "merge_export": {"keep_adapter": True},
}
ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("components/**/component.py"), *ROOT.glob("pipelines/**/component.py")])


def faces_of(source):
    module = importlib.import_module(".".join(["llm_finetune", *source.relative_to(ROOT).with_suffix("").parts]))
    return [face for face in vars(module).values() if hasattr(face, "python_func")]


EVERY = [face for source in SOURCES for face in faces_of(source)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The whole pipeline, each card given its recorded input, with a model and rows of this machine."""
    folder = tmp_path_factory.mktemp("backend")
    model = str(tiny_model(folder / "model", layers=1, head=32))
    backend = Backend(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact_types, "_MINIO_LOCAL_MOUNT_PREFIX", f"{folder}/minio/")
        run_chain(backend, model, str(rows(folder / "rows.jsonl", 41)))
        yield SimpleNamespace(backend=backend, model=model)


def run_chain(backend, model, data):
    asked = recording("check-recipe")["inputs"]["parameterValues"]
    chosen = backend.run(
        "check-recipe",
        FACES["check-recipe"],
        model_name=model,
        recipe={**asked["recipe"], **RECIPE},
        jsonl_path=data,
        checkpoint_root="",
    )
    named = {"model_name": model, "jsonl_path": data}
    own = {name: chosen[name] for name in ("load_dataset", "filter_clean", "load_model", "plan")}
    chosen |= backend.run("pin-sources", FACES["pin-sources"], **named, **own)
    for card in CHAIN[2:-1]:
        settings = chosen[card.replace("-", "_")]
        values = recording(card)["inputs"]["parameterValues"]
        given = {name: value for name, value in {**named, "plan": chosen["plan"]}.items() if name in values}
        result = backend.run(card, FACES[card], settings=settings, **given)
        assert card != "quality-gate" or result == {"Output": True}
    backend.run("report", FACES["report"])


@pytest.fixture
def later(ran):
    """The same backend after the run; what a test changes and writes is its own."""
    backend = Backend(ran.backend.folder, "later")
    backend.stored = copy.deepcopy(ran.backend.stored)
    return backend


def test_every_card_runs_to_its_end_and_what_it_writes_is_what_it_reads_back(ran):
    outputs = {name for card in CHAIN for name in recording(card)["outputs"].get("artifacts", {})}
    assert set(ran.backend.written) == outputs
    for name, written in ran.backend.written.items():
        for metadata in (written, ran.backend.stored[name]):
            assert read_metadata(SimpleNamespace(metadata=metadata)) == written


def recorded_inputs():
    for card in CHAIN:
        for name, artifacts in recording(card)["inputs"].get("artifacts", {}).items():
            yield pytest.param(name, artifacts["artifacts"][0]["metadata"], id=f"{card}-{name}")


@pytest.mark.parametrize(("name", "metadata"), list(recorded_inputs()))
def test_the_store_of_these_tests_is_held_to_the_recordings(ran, name, metadata):
    metadata = metadata | {"store_session_info": SESSION}
    assert as_stored(read_metadata(SimpleNamespace(metadata=metadata)), name) == metadata
    stored = ran.backend.stored[name]
    both = metadata.keys() & stored.keys()
    assert {key: kind(metadata[key]) for key in both} == {key: kind(stored[key]) for key in both}
    assert both > {"content_hash", "inputs", "origin", "package_version"}


def kind(value):
    return next(iter(value)) if isinstance(value, dict) else "text" if isinstance(value, str) else "number"


def test_what_the_launcher_could_not_store_is_refused_by_the_store_of_these_tests():
    for value in (None, float("nan"), {"deep": float("inf")}):
        with pytest.raises(ValueError, match=r"null|not JSON compliant"):
            as_stored({"a": value}, "a")


def test_the_last_artifact_leads_back_to_data_and_base_model(ran):
    stored = {name: read_metadata(SimpleNamespace(metadata=metadata)) for name, metadata in ran.backend.stored.items()}
    last = stored["deployment_info"]
    found, open_inputs = {}, dict(last["inputs"])
    while open_inputs:
        name, content_hash = open_inputs.popitem()
        assert stored[name]["content_hash"] == content_hash
        found[name] = content_hash
        open_inputs |= stored[name]["inputs"]
    assert found.keys() == {
        "merged_model", "eval_report", "ft_result", "lora_config", "train_tokens", "val_tokens", "train_sft", "val_sft",
        "train_dataset", "val_dataset", "clean_dataset", "raw_dataset", "model_config",
    }  # fmt: skip
    raw, base = stored["raw_dataset"], stored["model_config"]
    assert last["origin"] == {
        "base_model": ran.model, "base_revision": base["revision"], "base_licence": base["licence"],
        "dataset_source": raw["source"], "dataset_revision": raw["revision"], "dataset_license": raw["license"],
        "dataset_rows": 41, "dataset_content_hash": raw["content_hash"],
    }  # fmt: skip


def test_the_data_report_shows_what_the_cards_have_recorded(later):
    later.stored["clean_dataset"]["dropped"] = {"struct": {"too_short": 2}}
    later.stored["val_dataset"]["leakage"]["struct"]["near_duplicate"] = 7
    later.run("data-report", FACES["data-report"])
    page = later.path("data-report", "report").read_text()
    words = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "2 too short" in words and "near duplicate 7 close 0" in words


def test_the_model_card_says_what_was_measured_and_nothing_of_the_store(ran):
    card = (ran.backend.path("merge-export", "merged_model") / "README.md").read_text().replace("\\_", "_")
    assert f"| source | {ran.backend.written['raw_dataset']['source']} |" in card
    assert re.search(r"^\| base_loss \| \d", card, re.MULTILINE)
    assert not re.search(r"store_session_info|store-secret|display_name|\bstruct\b", card)


def test_the_server_is_given_the_store_and_the_commit_of_the_base(later):
    commit = "c" * 40
    origin = later.stored["merged_model"]["origin"]["struct"]
    origin |= {"base_model": "org/base", "base_revision": commit}
    later.run("vllm-serve", FACES["vllm-serve"], settings={"serve_adapter": True, "adapter_base": "org/base"})
    info = later.path("vllm-serve", "deployment_info").read_text()
    assert f"hf://org/base:{commit}" in info
    assert "s3://mlpipeline/v2/artifacts/llm-finetune/merge-export/merged_model/adapter/" in info


@pytest.mark.parametrize(
    ("recorded_as", "weights"), [({"load_in_4bit": 1}, "NF4"), ({"load_in_4bit": 0}, "bfloat16"), ({}, "bfloat16")]
)
def test_what_is_in_4_bit_is_read_by_one_rule(later, recorded_as, weights):
    del later.stored["model_config"]["load_in_4bit"]
    later.stored["model_config"] |= recorded_as
    later.run("apply-lora", FACES["apply-lora"])
    assert f"frozen weights in {weights}" in later.path("apply-lora", "model_summary").read_text()


@pytest.mark.parametrize("value", [True, False, 1, 0, 1.0, 0.0])
def test_a_flag_is_true_or_false_on_every_backend(value):
    assert read_flag(dsl.Model(metadata={"a": value}), "a") is bool(value)


def test_a_flag_that_is_missing_is_false_and_one_that_is_neither_is_refused():
    assert read_flag(dsl.Model(metadata={}), "a") is False
    with pytest.raises(UserError, match=r"a = 'false' in the metadata of s3://b/m is not a boolean. .*\"a\": true"):
        read_flag(dsl.Model(uri="s3://b/m", metadata={"a": "false"}), "a")


def test_a_mapping_whose_only_key_is_named_struct_stays_one():
    written = {"inputs": {}, "strata": {"struct": {"train": 3}}, "columns": ["list"], "names": {"list": ["a"]}}
    for metadata in (written, as_stored(written, "a")):
        assert read_metadata(SimpleNamespace(metadata=metadata)) == written


def test_cards_run_without_their_optional_artifacts(later, ran):
    later.run("tokenize", FACES["tokenize"], without=["model_config"], model_name=ran.model)
    assert set(later.written["train_tokens"]["inputs"]) == {"train_sft"}
    later.run("evaluate", FACES["evaluate"], without=["train_tokens"], settings=RECIPE["evaluate"] | {"few_shot": 0})
    assert "train_tokens" not in later.written["eval_report"]["inputs"]
    later.run("merge-export", FACES["merge-export"], without=["eval_report"])
    assert "The model was not evaluated." in (later.path("merge-export", "merged_model") / "README.md").read_text()


@pytest.mark.parametrize("face", EVERY, ids=lambda face: face.name)
@pytest.mark.parametrize("kind", [{"type": {"instanceSchema": ""}}, {}], ids=["untitled", "untyped"])
def test_every_face_takes_artifacts_without_a_title(face, kind):
    artifact = {"name": "1", "uri": "s3://bucket/x", "metadata": {"rows": 1}, **kind}
    names = [name for name, spec in (face.component_spec.inputs or {}).items() if spec.type.startswith("system.")]
    given = {"artifacts": {name: {"artifacts": [artifact] * 2} for name in names}}
    executor = Executor({"inputs": given, "outputs": {"outputFile": "/tmp/unused.json"}}, face)
    for name in names:
        found = executor.input_artifacts[name]
        for each in found if face.component_spec.inputs[name].is_artifact_list else [found]:
            assert (each.path, each.metadata) == ("/s3/bucket/x", {"rows": 1})


@pytest.mark.parametrize("face", EVERY, ids=lambda face: face.name)
def test_no_face_wraps_an_artifact_in_optional(face):
    for name, annotation in face.python_func.__annotations__.items():
        inner = type_annotations.maybe_strip_optional_from_annotation(annotation)
        assert inner is annotation or not type_annotations.is_artifact_wrapped_in_Input(inner), (
            f"{face.name}: on a backend, KFP's executor can't make Optional[dsl.Input[…]]; write "
            f"`{name}: dsl.Input[…] = None`, which is optional too"
        )


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.parent.name)
def test_metadata_is_read_in_one_place(source):
    read = re.findall(r"\w+\.metadata\b(?!\(|\.update\(| import)", source.read_text())
    assert not read, f"{source}: {read}: read it with read_metadata() or read_flag() of components/shared/metadata.py"
