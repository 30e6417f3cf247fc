"""Merge & Export: the model card of the merged model."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from merge_export_adapter import (  # noqa: F401
    BASE,
    TRAINING,
    export,
    fixture_adapter,
    fixture_base,
    fixture_one_thread,
    fixture_trained,
)

from llm_finetune.components.serving.merge_export import licenses, step


def test_the_model_card(base: Path, adapter: Path, tmp_path: Path) -> None:
    export(base, adapter, tmp_path)
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert (card.data.base_model, card.data.license) == ("org/base", "apache-2.0")
    for line in (
        "# base, fine-tuned",
        "[org/base](https://huggingface.co/org/base) at revision `abc`, fine-tuned with\nLoRA on completions",
        "| modules | down_proj, q_proj, v_proj |",
        "| val\\_loss | 1.25 |",
        "| tuned\\_loss | 0.5 |",
        "| parity\\_rows | 16 |",
        "| adapter | sha256:a |",
        "| train\\_tokens | sha256:t |",
        "| seed | 7 |",
    ):
        assert line in card.content


def test_the_model_card_repeats_the_run(base: Path, adapter: Path, tmp_path: Path) -> None:
    plan = {"parameters": {"learning_rate": 1e-3, "template": "{instruction}\n\n{output}"}, "evaluate": {}}
    facts = BASE | {"licence": "cc-by-nc-4.0"}
    arguments = (base, adapter, tmp_path / "merged", tmp_path / "summary.md", step.Settings(), facts, TRAINING)
    step.merge_export(*arguments, {"tuned_loss": 0.5}, plan=plan)
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)\n```", card.content, re.DOTALL)[1])
    assert recipe == {
        "parameters": plan["parameters"],
        "load_model": {"revision": "abc"},
        "load_dataset": {"hf_revision": "0" * 40},
    }
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("loss", 0.5, "org/rows")
    assert "**The license of the base model (cc-by-nc-4.0) forbids commercial use**" in card.content
    assert "**The license of the data is unknown**" in card.content
    assert "| rows | 1,200 |" in card.content


def test_the_model_card_of_a_base_in_a_folder(base: Path, adapter: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(base, tmp_path / "base")
    card = tmp_path / "merged" / "README.md"
    facts = {**BASE, "model_name": str(copied)}
    arguments = (copied, adapter, tmp_path / "merged", tmp_path / "summary.md", step.Settings(), facts)
    step.merge_export(*arguments)
    assert ModelCard.load(card).data.base_model is None
    assert "# base, fine-tuned\n\nbase at revision `abc`" in card.read_text()
    assert str(tmp_path) not in card.read_text()
    (copied / "README.md").write_text("---\nbase_model: org/original\n---\n")
    step.merge_export(*arguments)
    assert ModelCard.load(card).data.base_model == "org/original"
    licenses = {"dataset_license": "mit and cc-by-nc-4.0"}
    step.merge_export(*arguments, TRAINING | {"origin": TRAINING["origin"] | licenses})
    assert "**The license of the data (cc-by-nc-4.0) forbids commercial use**" in card.read_text()
    assert "| license | mit and cc-by-nc-4.0 |" in card.read_text() and "data (mit)" not in card.read_text()


@pytest.mark.parametrize(
    ("licence", "fields"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("Tongyi Qianwen", {"license": "other", "license_name": "tongyi-qianwen", "license_link": "LICENSE.txt"}),
        ("other", {"license": "other", "license_link": "LICENSE.txt"}),
        ("unknown", {"license": "unknown"}),
    ],
)
def test_a_licence_that_the_hub_does_not_list_has_a_name_beside_it(tmp_path: Path, licence: str, fields: dict) -> None:
    (tmp_path / "LICENSE.txt").write_text("Terms")
    assert licenses.front_matter(licence, tmp_path) == fields


def test_the_front_matter_is_one_that_the_hub_takes(base: Path, adapter: Path, tmp_path: Path) -> None:
    facts = BASE | {"licence": "lfm1.0"}
    arguments = (base, adapter, tmp_path / "merged", tmp_path / "summary.md", step.Settings(), facts, {})
    step.merge_export(*arguments, {"tuned_loss": 0.5})
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert (card.data.license, card.data.license_name, card.data.license_link) == ("other", "lfm1.0", "LICENSE")
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.dataset_name) == ("validation-rows", "validation rows")
