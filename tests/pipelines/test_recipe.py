import pytest

from llm_finetune.components.data.load_dataset.component import load_dataset
from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.finetune import finetune
from llm_finetune.pipelines.local.start import make_plan
from llm_finetune.pipelines.recipe.files import RECIPES, read_recipe
from llm_finetune.pipelines.recipe.step import SETTINGS, check_recipe
from llm_finetune.pipelines.recipe.wiring import PARAMETERS

DEFAULTS = {
    name: parameter.default
    for name, parameter in finetune.component_spec.inputs.items()
    if name != "recipe"
}  # fmt: skip


def test_the_defaults_of_the_pipeline_pass_and_an_empty_recipe_changes_nothing():
    assert check_recipe(DEFAULTS, {}) == {card: {} for card in SETTINGS}


def test_values_pass_as_the_text_that_kfp_makes_of_them():
    as_text = {name: str(value) for name, value in DEFAULTS.items()}
    sections = check_recipe(as_text, {"finetune_lora": {"warmup_ratio": 0.1, "gradient_accumulation_steps": 4.0}})
    assert sections["finetune_lora"] == {"warmup_ratio": 0.1, "gradient_accumulation_steps": 4}


def test_field_names_and_shared_settings_reach_every_card_that_has_them():
    sections = check_recipe(
        DEFAULTS, {"fields": {"output_key": "answer"}, "finetune_lora": {"tokens_per_micro_batch": 4096}}
    )
    assert [sections[card]["output_key"] for card in ("filter_clean", "train_val_split", "format_sft")] == [
        "answer"
    ] * 3
    assert sections["apply_lora"]["tokens_per_micro_batch"] == 4096


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"finetune": {}}, "unknown section 'finetune' in the recipe; did you mean 'finetune_lora'?"),
        ({"finetune_lora": {"warmup": 1}}, "unknown setting 'recipe.finetune_lora.warmup'; did you mean 'warmup_ratio'?"),
        ({"finetune_lora": {"warmup_ratio": 2}}, "recipe.finetune_lora.warmup_ratio = 2: Input should be less than 1"),
        ({"finetune_lora": {"learning_rate": 1e-3}}, "recipe.finetune_lora.learning_rate is set by the pipeline's parameter learning_rate"),
        ({"apply_lora": {"r": 8}}, "recipe.apply_lora.r is set by the pipeline's parameter lora_r"),
        ({"apply_lora": {"init": "pissa_niter_16"}}, "use pissa"),
        ({"filter_clean": [1]}, "recipe.filter_clean = [1]: a section is a mapping"),
        ({"fields": {"output": "x"}}, "unknown setting 'recipe.fields.output'; did you mean 'output_key'?"),
        ({"fields": {"output_key": "a"}, "format_sft": {"output_key": "b"}}, "give it once"),
        ({"merge_export": {"push_to_hub": True}}, "push_to_hub needs hub_repo"),
    ],
)  # fmt: skip
def test_an_impossible_recipe_is_refused_by_name(recipe, message):
    with pytest.raises(UserError) as error:
        check_recipe(DEFAULTS, recipe)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num_epochs": 0}, "recipe.finetune_lora.num_epochs = 0: Input should be greater than or equal to 1"),
        ({"gate_rules": "los_delta < 0"}, "did you mean 'loss_delta'?"),
        ({"source_type": "hub"}, "recipe.load_dataset.source_type = 'hub'"),
        ({"lora_r": "many"}, "recipe.apply_lora.r = 'many'"),
    ],
)
def test_an_impossible_parameter_is_refused_before_anything_runs(parameters, message):
    with pytest.raises(UserError) as error:
        check_recipe({**DEFAULTS, **parameters}, {})
    assert message in str(error.value)


@pytest.mark.parametrize("card", SETTINGS)
def test_a_cards_parameters_are_its_settings_with_the_same_defaults(card):
    group = next(g for g in ("data", "tokens", "model", "training", "evaluation", "serving")
                 if SETTINGS[card].__module__.split(".")[2] == g)  # fmt: skip
    module = __import__(f"llm_finetune.components.{group}.{card}.component", fromlist=[card])
    inputs = getattr(module, card).component_spec.inputs
    own = {name: spec.default for name, spec in inputs.items() if name in SETTINGS[card].model_fields}
    assert own == SETTINGS[card]().model_dump(mode="json")
    plain = {
        name for name, spec in inputs.items() if "Artifact" not in str(spec.type) and "system." not in str(spec.type)
    }
    assert plain - set(own) == {"settings", "package_version"}


def test_every_parameter_goes_to_a_setting_that_exists():
    for parameter, places in PARAMETERS.items():
        for card, setting in places:
            assert setting in SETTINGS[card].model_fields, (parameter, card, setting)
    assert load_dataset.component_spec.inputs["max_samples"].default == DEFAULTS["max_samples"]


@pytest.mark.parametrize("name", [path.stem for path in RECIPES.glob("*.yaml")])
def test_every_recipe_that_ships_is_possible(name):
    plan = read_recipe(RECIPES / f"{name}.yaml")
    check_recipe({**DEFAULTS, **plan.parameters}, plan.recipe)


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_the_defaults(tmp_path):
    recipe = tmp_path / "my.yaml"
    recipe.write_text("parameters: {num_epochs: 7, max_length: 99}\nevaluate: {generate_samples: 3}\n")
    data = tmp_path / "rows.jsonl"
    data.write_text("{}")
    plan = make_plan(str(data), recipe, ["max_length=55", "gpu_count=2"], port=0)
    assert plan.parameters["num_epochs"] == 7
    assert plan.parameters["max_length"] == 55
    assert plan.parameters["gpu_count"] == "2"
    assert plan.parameters["jsonl_path"] == str(data)
    assert plan.recipe["evaluate"] == {"max_samples": 128, "generate_samples": 3}
    assert plan.recipe["vllm_serve"]["port"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("parameters: {learning: 1}", "the pipeline has no parameter 'learning'; did you mean 'learning_rate'?"),
        ("a: [", "is not YAML"),
        ("- 1", "holds list, not a mapping"),
        ("evaluate: 3", "evaluate in"),
    ],
)
def test_a_recipe_file_that_cannot_be_read_says_why(tmp_path, content, message):
    (tmp_path / "my.yaml").write_text(content)
    with pytest.raises(UserError) as error:
        read_recipe(tmp_path / "my.yaml")
    assert message in str(error.value)


def test_a_recipe_that_is_not_there_names_those_that_ship(tmp_path):
    with pytest.raises(UserError, match="give a YAML file, or one of those that ship: demo, local"):
        read_recipe(tmp_path / "none.yaml")
