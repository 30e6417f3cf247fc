from pathlib import Path

import pytest

from llm_finetune.components.data.load_dataset.component import load_dataset
from llm_finetune.components.run.check_recipe.component import check_recipe as check_recipe_card
from llm_finetune.components.run.check_recipe.step import SETTINGS, check_cluster, check_recipe, plan_of
from llm_finetune.components.run.check_recipe.wiring import PARAMETERS
from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.finetune import finetune
from llm_finetune.pipelines.local.plan import make_plan
from llm_finetune.pipelines.recipe import RECIPES, read_card, read_recipe

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


def test_a_list_of_modules_reaches_the_card_as_text():
    recipe = {"apply_lora": {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["lm_head"]}}
    expected = {"target_modules": "q_proj,v_proj", "modules_to_save": "lm_head"}
    assert check_recipe(DEFAULTS, recipe)["apply_lora"] == expected


def test_columns_to_slice_by_are_kept_for_evaluate():
    def kept(**sections) -> str | None:
        return check_recipe({}, sections)["format_sft"].get("keep_columns")

    assert kept() is None and kept(evaluate={"slice_by": "completion"}) is None
    assert kept(evaluate={"slice_by": "source, year"}) == "source,year"
    assert kept(evaluate={"slice_by": "source"}, format_sft={"keep_columns": "id,source"}) == "id,source"


def test_where_a_run_goes_is_passed_on_as_kubernetes_writes_it():
    outputs = check_cluster({}).outputs
    assert outputs["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "value": "", "effect": "NoSchedule"}
    ]
    assert (outputs["model_cache_claim"], outputs["hub_token_secret"]) == ("llm-finetune-model-cache", "hf-token")
    recipe = {"cluster": {"node_selector": {"gpu": "h100"}, "tolerations": []}}
    assert check_cluster(recipe).outputs["node_selector"] == {"gpu": "h100"}
    assert check_recipe(DEFAULTS, recipe)["vllm_serve"]["node_selector"] == {"gpu": "h100"}
    own = recipe | {"vllm_serve": {"node_selector": {"gpu": "l4"}}}
    assert check_recipe(DEFAULTS, own)["vllm_serve"]["node_selector"] == {"gpu": "l4"}


def test_a_volume_for_checkpoints_is_the_root_of_every_training():
    assert check_recipe(DEFAULTS, {}, "/mnt")["finetune_lora"] == {"checkpoint_root": "/mnt"}
    assert check_recipe(DEFAULTS, {})["finetune_lora"] == {}
    own = check_recipe(DEFAULTS, {"finetune_lora": {"checkpoint_root": "/mine"}}, "/mnt")
    assert own["finetune_lora"] == {"checkpoint_root": "/mine"}


def test_a_plan_holds_what_decides_the_model_alone():
    recipe = {
        "finetune_lora": {"checkpoint_root": "/mnt", "warmup_ratio": 0.1},
        "vllm_serve": {"port": 1},
        "cluster": {"tolerations": []},
    }
    plan = plan_of(DEFAULTS, recipe)
    assert plan.keys() == {"parameters", "finetune_lora"}
    assert plan["finetune_lora"] == {"warmup_ratio": 0.1}
    assert DEFAULTS.keys() - plan["parameters"].keys() == {
        "deployment_name", "serve_target", "namespace", "gpu_type", "gpu_count"
    }  # fmt: skip


def test_a_plan_holds_no_passwords_and_signatures():
    recipe = {
        "load_dataset": {"mixture": [{"path": "https://a:b@x.org/r.jsonl?X-Amz-Signature=ff#g, s3://k:l@b/?.jsonl"}]},
        "filter_clean": {"eval_sets": ["https://x.org/e.jsonl?sig=ff", {"jsonl_url": "https://u@x.org/f.jsonl"}]},
        "merge_export": {"registry_url": "http://me:secret@registry:8080"},
        "evaluate": {"system_prompt": "see https://x.org/?page=1"},
    }
    parameters = DEFAULTS | {"jsonl_url": "https://me:p%40ss@x.org/r.jsonl?sig=ff", "template": "https://a?b {output}"}
    plan = plan_of(parameters, recipe)
    assert plan["parameters"]["jsonl_url"] == "https://x.org/r.jsonl"
    assert plan["parameters"]["template"] == parameters["template"]
    assert plan["load_dataset"] == {"mixture": [{"path": "https://x.org/r.jsonl, s3://b/?.jsonl"}]}
    assert plan["filter_clean"] == {"eval_sets": ["https://x.org/e.jsonl", {"jsonl_url": "https://x.org/f.jsonl"}]}
    assert plan["merge_export"] == {"registry_url": "http://registry:8080"}
    assert plan["evaluate"] == recipe["evaluate"]
    assert recipe["merge_export"] == {"registry_url": "http://me:secret@registry:8080"}


def test_a_model_card_gives_its_recipe_back(tmp_path):
    card = tmp_path / "README.md"
    card.write_text(
        "# x\n\n```yaml\nother: 1\n```\n\n## Repeat\n\nSo.\n\n```yaml\nparameters:\n  seed: 7\nload_model:\n  revision: abc\n```\n"
    )
    plan = read_card(card)
    assert (plan.parameters, plan.recipe) == ({"seed": 7}, {"load_model": {"revision": "abc"}})
    card.write_text("# x\n")
    with pytest.raises(UserError, match=r"README.md contains no recipe: it is not the model card of a model"):
        read_card(card)
    with pytest.raises(UserError, match="no model card at nowhere"):
        read_card(Path("nowhere"))


def test_the_card_hands_out_sections_and_cluster_by_name():
    names = check_recipe_card.component_spec.outputs
    values = check_recipe_card.python_func(
        **{**DEFAULTS, "gpu_count": "0"}, recipe={"fields": {"input_key": "context"}}
    )
    outputs = dict(zip(names, values, strict=True))
    assert list(names)[: len(SETTINGS)] == list(SETTINGS)
    assert outputs["format_sft"] == {
        "instruction_key": "instruction",
        "input_key": "context",
        "output_key": "output",
        "chat_key": "",
    }
    assert outputs["checkpoint_claim"] == "llm-finetune-checkpoints"
    assert outputs["evaluation_gpus"] == "0"
    as_text = {name: str(value) for name, value in DEFAULTS.items()}
    assert plan_of(as_text, {"fields": {}}) == plan_of(DEFAULTS, {"fields": {}})


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"finetune": {}}, "unknown section 'finetune' in the recipe; did you mean 'finetune_lora'?"),
        ({"finetune_lora": {"warmup": 1}}, "unknown setting 'recipe.finetune_lora.warmup'; did you mean 'warmup_ratio'?"),
        ({"finetune_lora": {"warmup_ratio": 2}}, "recipe.finetune_lora.warmup_ratio = 2: Input should be less than 1"),
        ({"finetune_lora": {"learning_rate": 1e-3}}, "recipe.finetune_lora.learning_rate is set by the pipeline's parameter learning_rate"),
        ({"apply_lora": {"r": 8}}, "recipe.apply_lora.r is set by the pipeline's parameter lora_r"),
        ({"apply_lora": {"init": "pissa_niter_16"}}, "use pissa"),
        ({"filter_clean": [1]}, "recipe.filter_clean = [1]; expected a mapping"),
        ({"fields": {"output": "x"}}, "unknown setting 'recipe.fields.output'; did you mean 'output_key'?"),
        ({"fields": {"output_key": "a"}, "format_sft": {"output_key": "b"}}, "set it only once"),
        ({"merge_export": {"push_to_hub": True}}, "push_to_hub needs hub_repo"),
        ({"merge_export": {"export_uri": "s3://bucket/"}}, "recipe.merge_export.export_uri = 's3://bucket/': it is the root of a bucket: use a folder for the model, such as s3://bucket/models/my-model"),
        ({"cluster": {"node_selectors": {}}}, "unknown setting 'recipe.cluster.node_selectors'; did you mean 'node_selector'?"),
        ({"cluster": {"node_selector": {"gpu": True}}}, "recipe.cluster.node_selector.gpu = True: Input should be a valid string"),
        ({"cluster": {"tolerations": [{"operator": "Equal"}]}}, "operator Equal needs a key"),
        ({"cluster": {"tolerations": [{"key": "spot", "operator": "Exists", "value": "x"}]}}, "operator Exists must not have a value"),
        ({"cluster": {"model_cache_claim": "My_Claim"}}, "recipe.cluster.model_cache_claim = 'My_Claim'"),
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
        ({"gate_rules": "loss < 2, task.mmlu.drop <= 0.1"}, "gate_rules has 'task.mmlu.drop <= 0.1', but no task is"),
        ({"source_type": "hub"}, "recipe.load_dataset.source_type = 'hub'"),
        ({"lora_r": "many"}, "recipe.apply_lora.r = 'many'"),
    ],
)
def test_an_impossible_parameter_is_refused_before_anything_runs(parameters, message):
    with pytest.raises(UserError) as error:
        check_recipe({**DEFAULTS, **parameters}, {})
    assert message in str(error.value)


def test_a_rule_about_a_task_passes_where_tasks_are_evaluated():
    check_recipe({**DEFAULTS, "gate_rules": "task.mmlu.drop <= 0.1"}, {"evaluate": {"tasks": "mmlu"}})


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
    assert plain - set(own) - {"plan", "partition"} == {"settings", "package_version"}


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
    plan = make_plan(str(data), "", recipe, ["max_length=55", "gpu_count=2"], port=0)
    assert plan.parameters["num_epochs"] == 7
    assert plan.parameters["max_length"] == 55
    assert plan.parameters["gpu_count"] == "2"
    assert plan.parameters["jsonl_path"] == str(data)
    assert plan.recipe["evaluate"] == {"max_samples": 128, "generate_samples": 3, "few_shot": 0}
    assert plan.recipe["vllm_serve"]["port"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("parameters: {num_epochs: 1.5}", "num_epochs = 1.5: Input should be a valid integer"),
        ("parameters: {learning: 1}", "the pipeline has no parameter 'learning'; did you mean 'learning_rate'?"),
        ("a: [", "is not valid YAML"),
        ("- 1", "contains a list; expected a mapping"),
        ("evaluate: 3", "evaluate in"),
    ],
)
def test_a_recipe_file_that_cannot_be_read_says_why(tmp_path, content, message):
    (tmp_path / "my.yaml").write_text(content)
    with pytest.raises(UserError) as error:
        read_recipe(tmp_path / "my.yaml")
    assert message in str(error.value)


def test_a_recipe_that_is_not_there_names_those_that_ship(tmp_path):
    with pytest.raises(UserError, match="pass a YAML file, or the name of a recipe of this package: demo, local"):
        read_recipe(tmp_path / "none.yaml")
