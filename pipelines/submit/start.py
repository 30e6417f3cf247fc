"""Submits the pipeline to Kubeflow: validates the request, then uploads, starts and follows a run."""

from rich.console import Console

from llm_finetune.components.run.check_recipe.step import check_recipe
from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.recipe import RunPlan, read_assignments, read_recipe
from llm_finetune.pipelines.submit.submission import Submission


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
