"""Submits the pipeline to Kubeflow: validates the request, then uploads, starts and follows a run."""

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from llm_finetune.components.run.check_recipe.step import check_recipe
from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.options import PIPELINE, ClusterOptions
from llm_finetune.pipelines.recipe import RunPlan, read_assignments, read_recipe


@dataclass(frozen=True)
class Submission:
    """A run to submit.

    Attributes:
        host: URL of the API; empty for the cluster of this pod, or of the kubeconfig.
        namespace: The user's namespace; empty on a single-user installation.
        token_file: File with a token.
        ca_file: CA certificates to verify the API's certificate with; None uses those of the environment, or the public
            ones.
        recipe: Recipe file.
        assignments: Pipeline parameters as `name=value`.
        options: Compile options.
        caching: Whether cards may use cached results; False overrides the compile options.
        pipeline: Name of the pipeline on the server.
        version: Name of the version; empty derives it from the content.
        uploading: Whether to upload the pipeline; else the run contains its specification.
        experiment: Experiment of the run.
        run_name: Prefix of the run's name, followed by time and random digits; empty uses the pipeline's name.
        service_account: Service account of the run's pods; empty uses the installation's default.
        pipeline_root: URI for artifacts; empty uses the installation's default.
        cron: Schedule of a recurring run, in five fields or six (seconds first); empty starts one run now. Recurring
            runs use no cached results.
        waiting: Whether to wait for the end of the run.
        timeout_hours: Maximum time to wait.
        poll_seconds: Seconds between two status requests.
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


def submit(console: Console, submission: Submission) -> int:
    """Submits the pipeline and waits for the end of the run.

    Args:
        console: Console to print to.
        submission: The run to submit.

    Returns:
        The exit status: 0 after success, 1 after a failure, 3 if the gate stayed closed, 4 if the run was not followed
        to its end.

    Raises:
        UserError: If a setting is invalid, or the API rejects a request.
    """
    plan = RunPlan(read_assignments(submission.assignments))
    if submission.recipe:
        plan = plan.over(read_recipe(submission.recipe))
    check_recipe(plan.parameters, plan.recipe)
    schedule = _six_fields(submission.cron)
    if submission.version and not submission.uploading:
        raise UserError("--version names the uploaded version; it cannot be combined with --no-upload")
    from llm_finetune.pipelines.submit.run import run_plan  # imports kfp, which takes seconds: after the checks

    return run_plan(console, submission, plan, schedule)


def _six_fields(cron: str) -> str:
    """Converts a crontab schedule to KFP's six fields, which start with the seconds."""
    fields = cron.split()
    if cron and len(fields) not in (5, 6):
        raise UserError(f"--cron {cron!r} has {len(fields)} fields; expected five, such as '0 3 * * *', or six")
    return " ".join(["0", *fields] if len(fields) == 5 else fields)
