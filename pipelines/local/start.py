"""Starts a run on this machine: its plan, its folder, its server at the end."""

import hashlib
import json
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from llm_finetune.components.run.check_recipe.step import check_recipe
from llm_finetune.components.serving.vllm_serve.local import ports, server
from llm_finetune.components.serving.vllm_serve.settings import Settings
from llm_finetune.components.shared.card import PACKAGE_VERSION
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import content_hash
from llm_finetune.components.shared.progress import format_duration
from llm_finetune.pipelines.compile import compile_pipeline
from llm_finetune.pipelines.local.pages import Outcome, finish_pages, show_index
from llm_finetune.pipelines.local.report import closed_gate, show_pages, show_results
from llm_finetune.pipelines.local.runner import LocalRun, run_pipeline
from llm_finetune.pipelines.local.serving import show_deployment, show_how_to_serve, show_request, wait_for_ctrl_c
from llm_finetune.pipelines.local.state import error_of
from llm_finetune.pipelines.options import ClusterOptions
from llm_finetune.pipelines.recipe import RunPlan, read_assignments, read_card, read_recipe
from llm_finetune.pipelines.run_view.cards import ExitStatus

CARD_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    # Threads that wait for each other spin for so many rounds before they sleep. OpenMP's default of some 300,000 makes
    # training ten times slower as soon as anything else runs on the machine, and on an idle one gains a few percent.
    "GOMP_SPINCOUNT": "1000",
}
DEMO_DATASET = Path(__file__).parents[1] / "demo" / "addresses.jsonl"


def start_run(
    console: Console,
    dataset: str,
    base_model: str,
    recipe: Path | None,
    from_card: Path | None,
    assignments: list[str],
    resume: bool,
    keep: bool,
    port: int,
    workdir: Path,
) -> int:
    """Runs the pipeline and keeps its server up as long as wanted.

    Args:
        console: Where to print.
        dataset: File, URL or Hub id; empty takes the demo's.
        base_model: Folder or Hub id; empty takes the recipe's, else the demo's.
        recipe: Recipe file, or None.
        from_card: Model card of an earlier run to repeat, or None.
        assignments: Pipeline parameters as `name=value`.
        resume: Whether unchanged cards are taken from the cache.
        keep: Whether the server stays up until Ctrl-C.
        port: Port of the server; -1 leaves it to the recipe.
        workdir: Folder for everything that the run writes.

    Returns:
        The exit status: 0, 1 after a failed card, 3 when the gate stayed closed.

    Raises:
        UserError: If the plan is not possible.
        KeyboardInterrupt: After Ctrl-C, when everything has been stopped.
    """
    workdir = workdir.absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    plan = make_plan(dataset, recipe, assignments, port, from_card)
    if base_model or "model_name" not in plan.parameters:
        plan = RunPlan({"model_name": _base_model(base_model, workdir, console)}).over(plan)
    check_recipe(plan.parameters, plan.recipe)
    # From here on, so that another run or server is refused now and not when this one has trained its model.
    with _held_port(plan):
        return _run(console, plan, workdir, resume, keep)


def make_plan(
    dataset: str, recipe: Path | None, assignments: list[str], port: int, from_card: Path | None = None
) -> RunPlan:
    """Puts a run's plan together: shipped defaults, then the recipe, then the command line.

    Args:
        dataset: File, URL or Hub id; empty takes the demo's dataset and recipe.
        recipe: Recipe file, or None.
        assignments: Pipeline parameters as `name=value`.
        port: Port of the server; -1 leaves it to the recipe.
        from_card: Model card of an earlier run, whose recipe takes the place of the demo's, or None.

    Returns:
        The plan; without a base model where neither recipe nor command line names one.

    Raises:
        UserError: If a name or a value cannot be.
    """
    plan = read_recipe(Path("local"))
    if from_card:
        plan = read_card(from_card).over(plan)
    elif not dataset:
        plan = RunPlan({"jsonl_path": str(DEMO_DATASET)}).over(read_recipe(Path("demo")).over(plan))
    if recipe:
        plan = read_recipe(recipe).over(plan)
    if dataset:
        plan = RunPlan(_source(dataset)).over(plan)
    given = read_assignments(assignments)
    return RunPlan(given, {"vllm_serve": {"port": port}} if port >= 0 else {}).over(plan)


def _source(dataset: str) -> dict[str, Any]:
    if dataset.startswith(("http://", "https://")):
        return {"source_type": "jsonl_url", "jsonl_url": dataset}
    if Path(dataset).exists() or "://" in dataset:
        path = dataset if "://" in dataset else str(Path(dataset).absolute())
        return {"source_type": "jsonl_path", "jsonl_path": path}
    if dataset.endswith((".jsonl", ".json", ".csv", ".parquet", ".gz", ".zst")) or dataset.startswith((".", "/", "~")):
        raise UserError(f"no dataset at {dataset} (from {Path.cwd()})")
    return {"source_type": "huggingface", "hf_dataset": dataset}


def _base_model(base_model: str, workdir: Path, console: Console) -> str:
    if base_model:
        path = Path(base_model)
        if path.is_dir():
            return str(path.absolute())
        if base_model.startswith((".", "/", "~")):
            raise UserError(f"no base model folder at {base_model} (from {Path.cwd()})")
        return base_model
    from llm_finetune.pipelines.demo.base_model import fetch_base_model

    return str(fetch_base_model(workdir / "base-model" / "smollm2-135m-instruct", console.print))


def _held_port(plan: RunPlan) -> AbstractContextManager[Any]:
    port = int(plan.recipe.get("vllm_serve", {}).get("port", Settings().port))
    return ports.held(port) if plan.parameters.get("serve_target") == "local" and port else nullcontext()


def _run(console: Console, plan: RunPlan, workdir: Path, resume: bool, keep: bool) -> int:
    plan = plan.over(RunPlan({}, {"finetune_lora": {"checkpoint_root": str(workdir / "checkpoints")}}))
    folder = workdir / time.strftime("%Y-%m-%d-%H%M%S")
    folder.mkdir()
    # The cards inherit this machine's environment, HF_HUB_OFFLINE included.
    pipeline = compile_pipeline(folder / "pipeline.yaml", ClusterOptions(load_online=False))
    console.print("run in")
    console.out(folder)
    run = run_pipeline(
        pipeline,
        plan.arguments,
        folder,
        workdir / "cache" / _code_fingerprint(),
        resume,
        console,
        CARD_ENVIRONMENT,
    )
    return _finish(console, run, keep)


def _code_fingerprint() -> str:
    """Returns what cached results depend on besides their inputs: the package's version, its source and templates."""
    root = Path(__file__).resolve().parents[2]
    kinds = ("**/*.py", "**/*.jinja")
    sources = [content_hash(root / folder, kind) for folder in ("components", "pipelines") for kind in kinds]
    return hashlib.sha256(json.dumps([PACKAGE_VERSION, sources]).encode()).hexdigest()[:16]


def _finish(console: Console, run: LocalRun, keep: bool) -> int:
    state = run.state
    facts = {"time": format_duration(run.seconds), "most memory": f"{run.peak_memory_gib:.1f} GiB"}
    if not run.succeeded:
        failed = state.failed
        log = failed.log if failed else state.runner_log
        told = f"{failed.title if failed else 'The run'} failed: {error_of(log)}"
        finish_pages(console, state, Outcome("failed", told, log, facts))
        console.print(Text(told, "red"), soft_wrap=True)
        console.print("log:")
        console.out(log)
        show_index(console, state)
        return ExitStatus.FAILED
    deployed = state.output("vllm-serve", "deployment_info")
    if deployed is None:
        closed = closed_gate(state)
        reason = f"The gate stayed closed: {closed}" if closed else "Nothing was deployed."
        finish_pages(console, state, Outcome("gate closed", closed or reason, facts=facts))
        show_results(console, run)
        console.print(Text(reason, "yellow"), soft_wrap=True)
        show_pages(console, state)
        return ExitStatus.GATE_CLOSED
    info = server.read_info(deployed)
    is_local = info["target"] == "local"
    try:
        finish_pages(console, state, Outcome("succeeded", facts=facts))
        show_results(console, run)
        show_deployment(console, info)
        show_pages(console, state)
        if info["target"] == "kserve" or (is_local and keep):
            show_request(console, info)
        if is_local and keep:
            wait_for_ctrl_c(console, deployed)
    finally:
        if is_local:
            server.stop(deployed)
    model = state.output("merge-export", "merged_model")
    if is_local and model:
        show_how_to_serve(console, model, deployed)
    return 0
