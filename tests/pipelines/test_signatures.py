import json
import re

import jsonschema
import pytest
import yaml

from llm_finetune.components.run.check_recipe.step import check_recipe
from llm_finetune.components.run.check_recipe.wiring import PARAMETERS, SETTINGS
from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.recipe import RECIPES
from llm_finetune.pipelines.reference import REFERENCE, ROOT, SCHEMA, recipe_schema, reference
from llm_finetune.pipelines.signatures import BEGIN, END, Argument, render, signatures

FACE = f'''
def count(
    rows: dsl.Input,
    {BEGIN}
    gone: int = 3,
    limit: int = 3,
    {END}
    settings: dict = {{}},
):
    """Counts.

    Args:
        rows: What to count.
        gone: A setting that is
            no more.
        limit: Outdated.
        settings: More.
    """
    return rows
'''


def test_a_changed_setting_reaches_signature_and_docstring_and_nothing_else():
    written = render(
        FACE, "count", [Argument("limit", "int", "5", "Most rows. " * 12), Argument("new", "str", '"a"', "New.")]
    )
    assert "gone" not in written and "no more" not in written
    assert f'{BEGIN}\n    limit: int = 5,\n    new: str = "a",\n    {END}\n    settings: dict' in written
    assert "        rows: What to count.\n        limit: Most rows." in written
    assert "        new: New.\n        settings: More.\n" in written
    assert max(map(len, written.split("\n"))) <= 120
    assert (
        render(
            written, "count", [Argument("limit", "int", "5", "Most rows. " * 12), Argument("new", "str", '"a"', "New.")]
        )
        == written
    )


@pytest.mark.parametrize("path", signatures(), ids=lambda path: str(path.relative_to(ROOT)))
def test_signatures_are_those_of_the_settings(path):
    assert path.read_text() == signatures()[path], "run `make compile`"


def test_every_setting_is_described_in_the_reference():
    text = reference()
    assert REFERENCE.read_text() == text, "run `make compile`"
    assert SCHEMA.read_text() == json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n", "run `make compile`"
    for card, settings in SETTINGS.items():
        section = text.partition(f"## {card}\n")[2].partition("\n## ")[0]
        for name, field in settings.model_fields.items():
            assert field.description, f"{card}.{name} has no description"
            assert re.search(rf"^\| `{name}` \|", section, re.MULTILINE)


def test_shipped_recipes_name_the_schema_and_keep_it():
    files = sorted(RECIPES.glob("*.yaml"))
    assert files
    for file in files:
        assert file.read_text().startswith("# yaml-language-server: $schema=recipe.schema.json\n")
        jsonschema.validate(yaml.safe_load(file.read_text()), recipe_schema())


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"finetune_lora": {"warmup": 0.1}}, "warmup"),
        ({"finetune_lora": {"warmup_ratio": 2}}, "2"),
        ({"finetune_lora": {"learning_rate": 1e-4}}, "learning_rate"),  # a parameter of the pipeline
        ({"evaluate": {"answer_format": "xml"}}, "xml"),
        ({"evalute": {}}, "evalute"),
        ({"cluster": {"tolerations": [{"key": "gpu", "effect": "Never"}]}}, "Never"),
    ],
)
def test_schema_and_check_recipe_refuse_the_same(recipe, message):
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(recipe, recipe_schema())
    with pytest.raises(UserError, match=message):
        check_recipe({}, recipe)


def test_the_schema_knows_every_parameter():
    assert list(recipe_schema()["properties"]["parameters"]["properties"]) == list(PARAMETERS)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"parameters": {"num_epoch": 1}}, recipe_schema())
