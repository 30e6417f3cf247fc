"""Submits the pipeline to Kubeflow: checks the plan, uploads, runs, waits."""

import secrets
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.text import Text

from llm_finetune.components.run.check_recipe.step import check_recipe
from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.compile import PIPELINE, compile_pipeline
from llm_finetune.pipelines.options import ClusterOptions
from llm_finetune.pipelines.recipe import RunPlan, read_assignments, read_recipe
from llm_finetune.pipelines.run_view.cards import ExitStatus
from llm_finetune.pipelines.submit.connection import Connection, connect
from llm_finetune.pipelines.submit.upload import Version, named, upload
from llm_finetune.pipelines.submit.watch import Ended, LostSight, follow


@dataclass(frozen=True)
class Submission:
    """What is to be run, and where.

    Attributes:
        host: Address of the API; empty for the cluster around this pod, or the kubeconfig's.
        namespace: The user's namespace; empty on a single-user installation.
        token_file: File with a token.
        ca_file: Certificates that the API's own has to come from; None takes the environment's, or the public ones.
        recipe: Recipe file.
        assignments: Pipeline parameters as `name=value`.
        options: Compile options.
        caching: Whether unchanged cards may take their earlier results; False holds whatever the options say.
        pipeline: Name of the pipeline on the server.
        version: Name of its version; empty is named after the content.
        uploading: Whether it becomes a pipeline on the server; else the run carries its specification.
        experiment: Experiment that the run belongs to.
        run_name: Start of the run's name, to which time and chance are added; empty is the pipeline's name.
        service_account: Service account of the run's pods; empty is the installation's default.
        pipeline_root: Where artifacts go; empty is the installation's default.
        cron: Schedule of a recurring run, in five fields or six (seconds first); empty runs once, now. Recurring runs
            take nothing from caches.
        waiting: Whether to wait for the end.
        timeout_hours: How long to wait.
        poll_seconds: Seconds between two looks at the run.
    """

    host: str = ""
    namespace: str = ""
    token_file: Path | None = None
    ca_file: Path | None = None
    recipe: Path | None = None
    assignments: list[str] = field(default_factory=list)
    options: ClusterOptions = field(default_factory=ClusterOptions)
    caching: bool = True
    pipeline: str = PIPELINE
    version: str = ""
    uploading: bool = True
    experiment: str = "llm-finetune"
    run_name: str = ""
    service_account: str = ""
    pipeline_root: str = ""
    cron: str = ""
    waiting: bool = True
    timeout_hours: float = 72.0
    poll_seconds: float = 5.0


def submit(console: Console, wanted: Submission) -> int:
    """Submits the pipeline and waits for the end of the run.

    Args:
        console: Where to print.
        wanted: What is to be run.

    Returns:
        The exit status: 0; 1 after a failed run; 3 when the gate stayed closed; 4 where the run was not followed to
        its end.

    Raises:
        UserError: If the plan is impossible, or the API refuses it.
    """
    plan = RunPlan(read_assignments(wanted.assignments))
    if wanted.recipe:
        plan = plan.over(read_recipe(wanted.recipe))
    check_recipe(plan.parameters, plan.recipe)
    cron = _six_fields(wanted.cron)
    if wanted.version and not wanted.uploading:
        raise UserError("--version names what is uploaded, so it does not go with --no-upload")
    connection = connect(wanted.host, wanted.namespace, wanted.token_file, wanted.ca_file)
    with tempfile.TemporaryDirectory(prefix="llm-finetune-") as folder:
        compiled = compile_pipeline(Path(folder) / "finetune.yaml", _options(wanted))
        version = upload(connection, compiled, wanted.pipeline, wanted.version) if wanted.uploading else None
        if version:
            told = "uploaded" if version.new else "there already"
            _say(console, "pipeline", f"{wanted.pipeline}, version {version.name} ({told})")
        arguments = _arguments(connection, wanted, plan, compiled, version)
        if cron:
            made = _recurring_run(connection, arguments, cron)
            _say(console, "recurring", cron)
            console.out(_link(connection, "recurringrun", made.recurring_run_id))
            return 0
        run = _run(connection, arguments)
        link = _link(connection, "runs", run.run_id)
        _say(console, "run", str(arguments["job_name"]))
        console.out(link)
        if not wanted.waiting:
            return 0
        try:
            ended = follow(connection, run.run_id, compiled, console, wanted.poll_seconds, wanted.timeout_hours * 3600)
        except LostSight as error:
            console.print(Text(str(error), "yellow"), soft_wrap=True)
            _show_details(console, link)
            return ExitStatus.NOT_FOLLOWED
    return _finish(console, ended, link)


def _options(wanted: Submission) -> ClusterOptions:
    if wanted.caching and not wanted.cron:
        return wanted.options
    # A recurring run is there for data that have changed, which a cache does not see. The kfp client's `enable_caching`
    # leaves uploaded versions and the cards inside the exit handler as they are.
    return wanted.options.model_copy(update={"caching": False})


def _six_fields(cron: str) -> str:
    """Returns a schedule in KFP's six fields; those of crontab have no seconds."""
    fields = cron.split()
    if cron and len(fields) not in (5, 6):
        raise UserError(f"--cron {cron!r} has {len(fields)} fields; it takes five, such as '0 3 * * *', or six")
    return " ".join(["0", *fields] if len(fields) == 5 else fields)


def _arguments(
    connection: Connection, wanted: Submission, plan: RunPlan, compiled: Path, version: Version | None
) -> dict[str, Any]:
    """Makes sure of the experiment and returns what a run and a recurring run are created with alike."""
    experiment = connection.create(
        f"creating the experiment {wanted.experiment}",
        lambda: None,  # the client looks for it by itself
        lambda: connection.client.create_experiment(wanted.experiment, namespace=wanted.namespace or None),
    )
    # No two alike: by its name a run is found again when a gateway has lost the answer to its creation.
    name = f"{wanted.run_name or wanted.pipeline}-{time.strftime('%Y-%m-%d-%H%M%S')}-{secrets.token_hex(2)}"
    return {
        "experiment_id": experiment.experiment_id,
        "job_name": name,
        "params": plan.arguments,
        "pipeline_package_path": None if version else str(compiled),
        "pipeline_id": version.pipeline_id if version else None,
        "version_id": version.version_id if version else None,
        "pipeline_root": wanted.pipeline_root or None,
        "service_account": wanted.service_account or None,
    }


def _run(connection: Connection, arguments: dict[str, Any]) -> Any:
    client, place = connection.client, arguments["experiment_id"]

    def find() -> Any:
        found = client.list_runs(experiment_id=place, filter=named(arguments["job_name"]), page_size=1).runs
        return found[0] if found else None

    return connection.create("creating the run", find, lambda: client.run_pipeline(**arguments))


def _recurring_run(connection: Connection, arguments: dict[str, Any], cron: str) -> Any:
    client, place = connection.client, arguments["experiment_id"]

    def find() -> Any:
        found = client.list_recurring_runs(
            experiment_id=place, filter=named(arguments["job_name"]), page_size=1
        ).recurring_runs
        return found[0] if found else None

    def make() -> Any:
        # One at a time: two trainings of the same deployment would overwrite each other.
        return client.create_recurring_run(**arguments, cron_expression=cron, max_concurrency=1, no_catchup=True)

    return connection.create("creating the recurring run", find, make)


def _link(connection: Connection, kind: str, number: str) -> str:
    page = f"#/{kind}/details/{number}"
    if connection.host.endswith("/pipeline"):  # behind the central dashboard, which shows KFP in a frame
        dashboard = connection.host.removesuffix("/pipeline")
        return f"{dashboard}/_/pipeline/?ns={quote(connection.namespace)}{page}"
    return f"{connection.host}/{page}"


def _say(console: Console, what: str, text: str) -> None:
    console.print(Text.assemble((f"{what:<10} ", "bold"), text), soft_wrap=True)


def _show_details(console: Console, link: str) -> None:
    console.print("details:")
    console.out(link)


def _finish(console: Console, ended: Ended, link: str) -> int:
    if ended.state != "SUCCEEDED":
        reason = ended.reason or "the card Report of the run says why"
        console.print(Text(f"The run {ended.state.lower()}: {reason}", "red"), soft_wrap=True)
        _show_details(console, link)
        return ExitStatus.FAILED
    reason = ended.reason[:1].upper() + ended.reason[1:]
    if ended.deployed is False:
        said = reason or "The gate stayed closed, so nothing was deployed; its page says why"
        console.print(Text(said, "yellow"), soft_wrap=True)
        _show_details(console, link)
        return ExitStatus.GATE_CLOSED
    console.print(Text("The run succeeded", "green"), soft_wrap=True)
    if reason:
        console.print(Text(reason), soft_wrap=True)
    return 0
