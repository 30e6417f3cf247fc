"""Compile options: cluster settings that KFP accepts only as constants in the compiled pipeline.

Settings that may differ between runs are pipeline parameters, or in the recipe's section `cluster`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from llm_finetune.components.run.check_recipe.cluster import NAME
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.settings import validate

PIPELINE = "llm-finetune"  # name of the pipeline on the server
QUANTITY = r"^\d+(\.\d+)?(Ki|Mi|Gi|Ti)$"
CORES = r"^(\d+|\d+m|\d+\.\d+)$"
SECRET_ENDINGS = ("_TOKEN", "_KEY", "_KEY_ID", "_PASSWORD", "_SECRET")


class Size(BaseModel):
    """Resources of one kind of card.

    Attributes:
        cpu: CPU request.
        cpu_limit: CPU limit.
        memory: Memory request and limit.
        scratch: Size limit of /tmp; artifacts are on another volume, without a limit.
        hours: Timeout of the pod in hours.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpu: str = Field(pattern=CORES)
    cpu_limit: str = Field(pattern=CORES)
    memory: str = Field(pattern=QUANTITY)
    scratch: str = Field(pattern=QUANTITY)
    hours: int = Field(ge=1)

    @model_validator(mode="after")
    def _limit_above_request(self) -> "Size":
        if _cores(self.cpu_limit) < _cores(self.cpu):
            raise ValueError(f"cpu_limit {self.cpu_limit} is less than cpu {self.cpu}")
        return self


def _cores(quantity: str) -> float:
    return float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)


SIZES = {
    "small": Size(cpu="250m", cpu_limit="1", memory="1Gi", scratch="2Gi", hours=3),
    "data": Size(cpu="2", cpu_limit="4", memory="4Gi", scratch="50Gi", hours=12),
    "model": Size(cpu="2", cpu_limit="4", memory="8Gi", scratch="200Gi", hours=6),
    "train": Size(cpu="8", cpu_limit="16", memory="48Gi", scratch="200Gi", hours=72),
}
Kind = Literal["small", "data", "model", "train"]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
OptionalName = Annotated[str, StringConstraints(pattern=f"^$|{NAME}")]


class ClusterOptions(BaseModel):
    """Options of `llm-finetune compile`.

    Attributes:
        model_cache: Mount a volume for base models and pass models by reference, so that weights are not copied through
            the artifact store. Its PersistentVolumeClaim is cluster.model_cache_claim of the recipe.
        checkpoints: Mount a volume for checkpoints, so that a retried training resumes. Its PersistentVolumeClaim is
            cluster.checkpoint_claim of the recipe.
        spot: GPU nodes may be preempted: GPU cards are retried, training resumes from its last checkpoint.
        data_claim: Existing PersistentVolumeClaim with datasets, mounted at /mnt/data on the cards that read datasets;
            empty for none.
        environment: Environment variables of the cards that access external services, such as HF_ENDPOINT, HTTPS_PROXY
            or AWS_CA_BUNDLE. They are readable in the pipeline: put secrets into Kubernetes Secrets.
        ca_config_map: Existing ConfigMap whose key `ca.crt` contains the CA certificates that those cards trust instead
            of the public ones; empty for none.
        queue: Kueue LocalQueue of the GPU cards; empty for none.
        image_pull_policy: Image pull policy of the cards.
        image_pull_secrets: Image pull secrets, in addition to those of the run's service account.
        sizes: Resources per kind of card (small, data, model, train) that differ from the defaults.
        caching: Let unchanged cards use cached results; gate, deployment and report always run.
        load_online: Let the cards that read from the Hugging Face Hub access it, whatever their images set; if false,
            the environment decides, as in a local run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_cache: bool = False
    checkpoints: bool = False
    spot: bool = False
    data_claim: OptionalName = ""
    environment: dict[Variable, str] = Field(default_factory=dict)
    ca_config_map: OptionalName = ""
    queue: str = ""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    sizes: dict[Kind, dict[str, Any]] = Field(default_factory=dict)
    caching: bool = True
    load_online: bool = True

    @field_validator("environment")
    @classmethod
    def _check_environment(cls, environment: dict[str, str]) -> dict[str, str]:
        names = {name.upper() for name in environment}
        if secret := next((name for name in environment if name.upper().endswith(SECRET_ENDINGS)), None):
            raise ValueError(f"{secret} looks like a secret, but is readable in the pipeline: use a Kubernetes Secret")
        # Kubeflow's launcher runs in the same container and would use the proxy for the cluster's own services.
        if names & {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} and "NO_PROXY" not in names:
            raise ValueError("a proxy needs NO_PROXY with the cluster's domains, such as .svc,.cluster.local,.kubeflow")
        return environment

    def size(self, kind: Kind) -> Size:
        """Returns the resources of a kind of card."""
        return validate(Size, {**SIZES[kind].model_dump(), **self.sizes.get(kind, {})}, f"sizes.{kind}")


def read_options(file: Path | None, assignments: Iterable[str]) -> ClusterOptions:
    """Reads compile options; single options take precedence over the file.

    Args:
        file: YAML file with a mapping of options, or None.
        assignments: Options as `name=value`, with the value in YAML.

    Returns:
        The options.

    Raises:
        UserError: If the file cannot be read, or an option is unknown or invalid.
    """
    values: Any = {}
    if file:
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"--options {file}: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise UserError(f"--options {file} contains a {type(values).__name__}; expected a mapping of options")
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UserError(f"--option {assignment!r} does not have the form name=value")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--option {assignment!r}: {' '.join(str(error).split())}") from error
    options = validate(ClusterOptions, values, "option")
    for kind in options.sizes:
        options.size(kind)
    return options
