"""Uploads the pipeline, creates a run or a recurring run, and follows it."""

import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.text import Text

from llm_finetune.pipelines.compile import compile_pipeline
from llm_finetune.pipelines.options import ClusterOptions
from llm_finetune.pipelines.recipe import RunPlan
from llm_finetune.pipelines.run_view.cards import ExitStatus
from llm_finetune.pipelines.submit.connection import Connection, connect
from llm_finetune.pipelines.submit.submission import Submission
from llm_finetune.pipelines.submit.upload import Version, name_filter, upload
from llm_finetune.pipelines.submit.watch import RunNotFollowed, RunResult, follow_run


def run_plan(console: Console, submission: Submission, plan: RunPlan, schedule: str) -> int:
    """Runs a validated plan on Kubeflow.

    Args:
        console: Console to print to.
        submission: The run to submit.
        plan: Parameters and recipe.
        schedule: Schedule of a recurring run in six fields; empty starts one run now.

    Returns:
        The exit status of `submit`.

    Raises:
        UserError: If the API rejects a request.
    """
    connection = connect(submission.host, submission.namespace, submission.token_file, submission.ca_file)
    with tempfile.TemporaryDirectory(prefix="llm-finetune-") as folder:
        compiled = compile_pipeline(Path(folder) / "finetune.yaml", _options(submission))
        version = None
        if submission.uploading:
            version = upload(connection, compiled, submission.pipeline, submission.version)
            status = "uploaded" if version.new else "already uploaded"
            _print_labeled(console, "pipeline", f"{submission.pipeline}, version {version.name} ({status})")
        arguments = _run_arguments(connection, submission, plan, compiled, version)
        if schedule:
            recurring = _create_recurring_run(connection, arguments, schedule)
            _print_labeled(console, "recurring", schedule)
            console.out(_link(connection, "recurringrun", recurring.recurring_run_id))
            return ExitStatus.SUCCEEDED
        run = _create_run(connection, arguments)
        link = _link(connection, "runs", run.run_id)
        _print_labeled(console, "run", str(arguments["job_name"]))
        console.out(link)
        if not submission.waiting:
            return ExitStatus.SUCCEEDED
        timeout = submission.timeout_hours * 3600
        try:
            result = follow_run(connection, run.run_id, compiled, console, submission.poll_seconds, timeout)
        except RunNotFollowed as error:
            console.print(Text(str(error), "yellow"), soft_wrap=True)
            _print_details(console, link)
            return ExitStatus.NOT_FOLLOWED
    return _print_result(console, result, link)


def _options(submission: Submission) -> ClusterOptions:
    if submission.caching and not submission.cron:
        return submission.options
    # A recurring run must see changed data, which caches do not detect. `enable_caching` of the kfp client does not
    # change uploaded versions and cards inside the exit handler.
    return submission.options.model_copy(update={"caching": False})


def _run_arguments(
    connection: Connection, submission: Submission, plan: RunPlan, compiled: Path, version: Version | None
) -> dict[str, Any]:
    """Creates the experiment if necessary and returns the arguments that runs and recurring runs have in common."""
    experiment = connection.create(
        f"creating the experiment {submission.experiment}",
        lambda: None,  # the client looks for an existing one
        lambda: connection.client.create_experiment(submission.experiment, namespace=submission.namespace or None),
    )
    # The name is unique, so that a run can be found by it if a gateway drops the response of its creation.
    name = f"{submission.run_name or submission.pipeline}-{time.strftime('%Y-%m-%d-%H%M%S')}-{secrets.token_hex(2)}"
    return {
        "experiment_id": experiment.experiment_id,
        "job_name": name,
        "params": plan.arguments,
        "pipeline_package_path": None if version else str(compiled),
        "pipeline_id": version.pipeline_id if version else None,
        "version_id": version.version_id if version else None,
        "pipeline_root": submission.pipeline_root or None,
        "service_account": submission.service_account or None,
    }


def _create_run(connection: Connection, arguments: dict[str, Any]) -> Any:
    client = connection.client
    find = _finder(client.list_runs, "runs", arguments)
    return connection.create("creating the run", find, lambda: client.run_pipeline(**arguments))


def _create_recurring_run(connection: Connection, arguments: dict[str, Any], schedule: str) -> Any:
    client = connection.client

    def make() -> Any:
        # One at a time: two trainings of the same deployment would overwrite each other.
        return client.create_recurring_run(**arguments, cron_expression=schedule, max_concurrency=1, no_catchup=True)

    find = _finder(client.list_recurring_runs, "recurring_runs", arguments)
    return connection.create("creating the recurring run", find, make)


def _finder(list_objects: Callable[..., Any], attribute: str, arguments: dict[str, Any]) -> Callable[[], Any]:
    """Returns a function that looks for the object with the name and the experiment of the arguments."""

    def find() -> Any:
        name = name_filter(arguments["job_name"])
        response = list_objects(experiment_id=arguments["experiment_id"], filter=name, page_size=1)
        return next(iter(getattr(response, attribute) or []), None)

    return find


def _link(connection: Connection, kind: str, object_id: str) -> str:
    page = f"#/{kind}/details/{object_id}"
    if connection.host.endswith("/pipeline"):  # behind the central dashboard, which embeds KFP in a frame
        dashboard = connection.host.removesuffix("/pipeline")
        return f"{dashboard}/_/pipeline/?ns={quote(connection.namespace)}{page}"
    return f"{connection.host}/{page}"


def _print_labeled(console: Console, label: str, text: str) -> None:
    console.print(Text.assemble((f"{label:<10} ", "bold"), text), soft_wrap=True)


def _print_details(console: Console, link: str) -> None:
    console.print("details:")
    console.out(link)


def _print_result(console: Console, result: RunResult, link: str) -> int:
    if result.state != "SUCCEEDED":
        reason = result.reason or "see the card Report of the run"
        console.print(Text(f"The run {result.state.lower()}: {reason}", "red"), soft_wrap=True)
        _print_details(console, link)
        return ExitStatus.FAILED
    reason = result.reason[:1].upper() + result.reason[1:]
    if result.deployed is False:
        message = reason or "The gate stayed closed and nothing was deployed; see the page of Quality Gate"
        console.print(Text(message, "yellow"), soft_wrap=True)
        _print_details(console, link)
        return ExitStatus.GATE_CLOSED
    console.print(Text("The run succeeded", "green"), soft_wrap=True)
    if reason:
        console.print(Text(reason), soft_wrap=True)
    return ExitStatus.SUCCEEDED
