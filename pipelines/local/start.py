"""Runs the pipeline on this machine and keeps its server running."""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rich.console import Console
from rich.text import Text

from llm_finetune.components.run.check_recipe.step import check_recipe
from llm_finetune.components.serving.vllm_serve.local import ports, server
from llm_finetune.components.serving.vllm_serve.settings import Settings
from llm_finetune.components.shared.card import PACKAGE_VERSION
from llm_finetune.components.shared.files import content_hash
from llm_finetune.components.shared.progress import format_duration
from llm_finetune.pipelines.local.pages import Outcome, finish_pages, show_index
from llm_finetune.pipelines.local.plan import make_plan
from llm_finetune.pipelines.local.report import closed_gate, show_pages, show_results
from llm_finetune.pipelines.local.runner import LocalRun, run_pipeline
from llm_finetune.pipelines.local.serving import show_deployment, show_request, show_serve_command, wait_for_ctrl_c
from llm_finetune.pipelines.local.state import error_of
from llm_finetune.pipelines.options import ClusterOptions
from llm_finetune.pipelines.recipe import RunPlan
from llm_finetune.pipelines.run_view.cards import ExitStatus

CARD_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    # Spin rounds of waiting OpenMP threads before they sleep. The default of about 300,000 makes training ten times
    # slower if anything else runs on the machine; on an idle machine it gains a few percent.
    "GOMP_SPINCOUNT": "1000",
}


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
    """Runs the pipeline.

    Args:
        console: Console to print to.
        dataset: File, URL or Hub ID; empty uses the dataset of the demo.
        base_model: Folder or Hub ID; empty uses that of the recipe, else that of the demo.
        recipe: Recipe file, or None.
        from_card: Model card of an earlier run to repeat, or None.
        assignments: Pipeline parameters as `name=value`.
        resume: Whether unchanged cards use cached results.
        keep: Whether the server keeps running until Ctrl-C.
        port: Port of the server; -1 uses that of the recipe.
        workdir: Folder for all files of the run.

    Returns:
        The exit status: 0 after success, 1 after a failed card, 3 if the gate stayed closed.

    Raises:
        UserError: If a parameter or setting is invalid.
        KeyboardInterrupt: After Ctrl-C, when all processes have been stopped.
    """
    workdir = workdir.absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    plan = make_plan(dataset, base_model, recipe, assignments, port, from_card)
    check_recipe(plan.parameters, plan.recipe)
    if "model_name" not in plan.parameters:
        plan = RunPlan({"model_name": _fetch_demo_model(workdir, console.print)}).over(plan)
    # Reserve the port before the training, so that a conflict with another server is reported now.
    with _reserved_port(plan):
        return _run(console, plan, workdir, resume, keep)


def _fetch_demo_model(workdir: Path, progress: Callable[[str], None]) -> str:
    """Downloads the base model of the demo, unless it is there, and returns its folder."""
    from llm_finetune.pipelines.demo.base_model import fetch_base_model

    return str(fetch_base_model(workdir / "base-model" / "smollm2-135m-instruct", progress))


def _reserved_port(plan: RunPlan) -> AbstractContextManager[object]:
    port = int(plan.recipe.get("vllm_serve", {}).get("port", Settings().port))
    return ports.reserve(port) if plan.parameters.get("serve_target") == "local" and port else nullcontext()


def _run(console: Console, plan: RunPlan, workdir: Path, resume: bool, keep: bool) -> int:
    from llm_finetune.pipelines.compile import compile_pipeline  # imports kfp, which takes seconds: after the checks

    plan = plan.over(RunPlan({}, {"finetune_lora": {"checkpoint_root": str(workdir / "checkpoints")}}))
    folder = workdir / time.strftime("%Y-%m-%d-%H%M%S")
    folder.mkdir()
    # The cards inherit the environment of this process, including HF_HUB_OFFLINE.
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
    """Returns a hash of what cached results depend on besides their inputs: package version, source and templates."""
    root = Path(__file__).resolve().parents[2]
    kinds = ("**/*.py", "**/*.jinja")
    sources = [content_hash(root / folder, kind) for folder in ("components", "pipelines") for kind in kinds]
    return hashlib.sha256(json.dumps([PACKAGE_VERSION, sources]).encode()).hexdigest()[:16]


def _finish(console: Console, run: LocalRun, keep: bool) -> int:
    state = run.state
    facts = {"time": format_duration(run.seconds), "peak memory": f"{run.peak_memory_gib:.1f} GiB"}
    if not run.succeeded:
        failed = state.failed
        log = failed.log if failed else state.runner_log
        message = f"{failed.title if failed else 'The run'} failed: {error_of(log)}"
        finish_pages(console, state, Outcome("failed", message, log, facts))
        console.print(Text(message, "red"), soft_wrap=True)
        console.print("log:")
        console.out(log)
        show_index(console, state)
        return ExitStatus.FAILED
    info_file = state.output("vllm-serve", "deployment_info")
    if info_file is None:
        closed = closed_gate(state)
        reason = f"The gate stayed closed: {closed}" if closed else "Nothing was deployed."
        finish_pages(console, state, Outcome("gate closed", closed or reason, facts=facts))
        show_results(console, run)
        console.print(Text(reason, "yellow"), soft_wrap=True)
        show_pages(console, state)
        return ExitStatus.GATE_CLOSED
    info = server.read_info(info_file)
    is_local = info["target"] == "local"
    try:
        finish_pages(console, state, Outcome("succeeded", facts=facts))
        show_results(console, run)
        show_deployment(console, info)
        show_pages(console, state)
        if info["target"] == "kserve" or (is_local and keep):
            show_request(console, info)
        if is_local and keep:
            wait_for_ctrl_c(console, info_file)
    finally:
        if is_local:
            server.stop(info_file)
    model = state.output("merge-export", "merged_model")
    if is_local and model:
        show_serve_command(console, model, info_file)
    return 0
