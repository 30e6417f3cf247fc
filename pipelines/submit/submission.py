"""The request of `llm-finetune submit`."""

from dataclasses import dataclass, field
from pathlib import Path

from llm_finetune.pipelines.options import PIPELINE, ClusterOptions


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
