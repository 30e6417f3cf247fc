"""What a platform team decides once for its cluster, when the pipeline is compiled.

Everything that may differ from run to run is a pipeline parameter or in the recipe's section `cluster`; here is what
KFP takes only as a constant.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from llm_finetune.components.run.check_recipe.cluster import NAME
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.settings import validate

QUANTITY = r"^\d+(\.\d+)?(Ki|Mi|Gi|Ti)$"
CORES = r"^(\d+|\d+m|\d+\.\d+)$"
SECRET_ENDINGS = ("_TOKEN", "_KEY", "_KEY_ID", "_PASSWORD", "_SECRET")


class Size(BaseModel):
    """What one kind of card asks for.

    Attributes:
        cpu: Processors requested.
        cpu_limit: Most processors that it may use.
        memory: Memory requested, and its limit.
        scratch: Most disk that it may use under /tmp; its artifacts lie beside it, unbounded.
        hours: Hours that its pod may run.
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
        model_cache: Mount a volume for base models and pass them by reference, so that weights never travel through
            the artifact store. The recipe's cluster.model_cache_claim names its claim.
        checkpoints: Mount a volume for checkpoints, so that training goes on after its pod was lost. The recipe's
            cluster.checkpoint_claim names its claim.
        spot: GPU nodes may be taken away: the cards on them are tried again, training from its last checkpoint.
        data_claim: Claim of a volume with data of your own, mounted at /mnt/data on the cards that read datasets; it
            must exist. Empty for none.
        environment: Variables of the cards that reach out of the cluster, such as HF_ENDPOINT, HTTPS_PROXY or
            AWS_CA_BUNDLE. They stand in the pipeline as they are: secrets go into the namespace's secrets.
        ca_config_map: ConfigMap whose key `ca.crt` holds the certificate authorities that those cards trust, in place
            of the public ones; it must exist. Empty for none.
        queue: Kueue's local queue that the cards on GPUs wait in; empty for none.
        image_pull_policy: When the images of the cards are pulled.
        image_pull_secrets: Secrets for a private registry; those of the run's service account are used anyway.
        sizes: What each kind of card asks for, where it is not the default: small, data, model or train.
        caching: Let unchanged cards take their earlier results; never the gate, the deployment and the report.
        load_online: Let the cards that read from the Hugging Face Hub reach it, whatever their images say; without it
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
    def _readable_by_all(cls, environment: dict[str, str]) -> dict[str, str]:
        names = {name.upper() for name in environment}
        if secret := next((name for name in environment if name.upper().endswith(SECRET_ENDINGS)), None):
            raise ValueError(f"{secret} looks like a secret, and whoever sees the pipeline reads it: use a secret")
        # Kubeflow's launcher in the same container would ask the proxy for the pipeline's own services.
        if names & {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} and "NO_PROXY" not in names:
            raise ValueError("a proxy needs NO_PROXY with the cluster's names, such as .svc,.cluster.local,.kubeflow")
        return environment

    def size(self, kind: Kind) -> Size:
        """Returns what a kind of card asks for."""
        return validate(Size, {**SIZES[kind].model_dump(), **self.sizes.get(kind, {})}, f"sizes.{kind}")


def read_options(file: Path | None, assignments: Iterable[str]) -> ClusterOptions:
    """Reads compile options: a file, and single options over it.

    Args:
        file: YAML mapping of options, or None.
        assignments: Options as `name=value`, the value in YAML.

    Returns:
        The options.

    Raises:
        UserError: If the file cannot be read, or an option is unknown or impossible.
    """
    values: Any = {}
    if file:
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"--options {file}: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise UserError(f"--options {file} holds {type(values).__name__}, not a mapping of options")
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UserError(f"--option {assignment!r} is not of the form name=value")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--option {assignment!r}: {' '.join(str(error).split())}") from error
    options = validate(ClusterOptions, values, "option")
    for kind in options.sizes:
        options.size(kind)
    return options
