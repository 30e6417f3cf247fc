"""Parameters and recipe of a local run, from the command line, recipe files and a model card."""

from pathlib import Path

from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.recipe import RunPlan, read_assignments, read_card, read_recipe

DEMO_DATASET = Path(__file__).parents[1] / "demo" / "addresses.jsonl"
FILE_EXTENSIONS = (".jsonl", ".json", ".csv", ".parquet", ".gz", ".zst")


def make_plan(
    dataset: str,
    base_model: str,
    recipe: Path | None,
    assignments: list[str],
    port: int,
    from_card: Path | None = None,
) -> RunPlan:
    """Merges the plan of a run: recipes of this package, then the recipe file, then the command line.

    Args:
        dataset: File, URL or Hub ID; empty uses dataset and recipe of the demo.
        base_model: Folder or Hub ID; empty uses that of the recipe.
        recipe: Recipe file, or None.
        assignments: Pipeline parameters as `name=value`.
        port: Port of the server; -1 uses that of the recipe.
        from_card: Model card of an earlier run, whose recipe replaces that of the demo, or None.

    Returns:
        The plan; without a base model if neither recipe nor command line sets one.

    Raises:
        UserError: If a name or a value is invalid.
    """
    plan = read_recipe(Path("local"))
    if from_card:
        plan = read_card(from_card).over(plan)
    elif not dataset:
        plan = RunPlan({"jsonl_path": str(DEMO_DATASET)}).over(read_recipe(Path("demo")).over(plan))
    if recipe:
        plan = read_recipe(recipe).over(plan)
    if dataset:
        plan = RunPlan(_dataset_parameters(dataset)).over(plan)
    parameters = read_assignments(assignments)
    if base_model:
        parameters["model_name"] = _model_name(base_model)
    return RunPlan(parameters, {"vllm_serve": {"port": port}} if port >= 0 else {}).over(plan)


def _dataset_parameters(dataset: str) -> dict[str, str]:
    if dataset.startswith(("http://", "https://")):
        return {"source_type": "jsonl_url", "jsonl_url": dataset}
    if Path(dataset).exists() or "://" in dataset:
        path = dataset if "://" in dataset else str(Path(dataset).absolute())
        return {"source_type": "jsonl_path", "jsonl_path": path}
    if dataset.endswith(FILE_EXTENSIONS) or dataset.startswith((".", "/", "~")):
        raise UserError(f"no dataset at {dataset} (from {Path.cwd()})")
    return {"source_type": "huggingface", "hf_dataset": dataset}


def _model_name(base_model: str) -> str:
    path = Path(base_model)
    if path.is_dir():
        return str(path.absolute())
    if base_model.startswith((".", "/", "~")):
        raise UserError(f"no base model folder at {base_model} (from {Path.cwd()})")
    return base_model
