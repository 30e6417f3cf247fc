"""One revision on its way into a cluster: applied, waited for, asked, and put back when any of that fails."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from llm_finetune.components.serving.vllm_serve import smoke
from llm_finetune.components.serving.vllm_serve.kserve import mesh, rollback, rollout
from llm_finetune.components.serving.vllm_serve.kserve.cluster import Cluster, Manifest
from llm_finetune.components.serving.vllm_serve.kserve.diagnosis import Pace
from llm_finetune.components.serving.vllm_serve.kserve.rollout import KIND

# Routes and meshes follow the pods by some seconds.
NOT_YET = (0, 404, 502, 503, 504)
Ask = Callable[[str, str], list[smoke.Answer]]


@dataclass(frozen=True)
class Outcome:
    """A revision that serves.

    Attributes:
        service: Its InferenceService.
        base_url: Where clients ask, ending in `/v1`.
        answers: What it said to the golden prompts.
        share: Its share of the traffic, for people.
    """

    service: Manifest
    base_url: str
    answers: list[smoke.Answer]
    share: str = "all of the traffic"


@dataclass(frozen=True)
class Release:
    """What is brought in, and how.

    Attributes:
        cluster: Where.
        name: The InferenceService.
        model: The name that clients ask for.
        manifest: What is applied.
        revision: Its hash.
        existing: The InferenceService before, if there was one.
        pace: How long to wait for what.
        keep_failed: Whether a first deployment that failed stays.
        prompts: Asks the model at an address the golden prompts.
        canary: Name of the canary entry that carries the revision, if it is one.
    """

    cluster: Cluster
    name: str
    model: str
    manifest: Manifest
    revision: str
    existing: Manifest | None
    pace: Pace
    keep_failed: bool
    prompts: Ask
    canary: str = ""

    def under(self, name: str, manifest: Manifest, existing: Manifest | None) -> "Release":
        """Returns the same model as a service of another name, which is also the model's then."""
        return dataclasses.replace(self, name=name, model=name, manifest=manifest, existing=existing, keep_failed=False)

    def as_canary(self, canary: str) -> "Release":
        """Returns the same model as a canary entry."""
        return dataclasses.replace(self, canary=canary)

    def guarded(self) -> contextlib.AbstractContextManager[None]:
        """Returns the block in which any failure puts the service back."""
        return rollback.put_back_on_failure(
            self.cluster, self.name, self.revision, self.existing, self.pace, self.keep_failed, self.canary
        )

    def apply(self, manifest: Manifest) -> None:
        """Applies a manifest over what was there."""
        self.cluster.apply_over(manifest, self.existing)
        print(f"applied {KIND} {self.cluster.namespace}/{self.name}, revision {self.revision}", flush=True)

    def wait(self, target: rollout.Target) -> Manifest:
        """Waits for the revision's pods; see `rollout.wait`."""
        return rollout.wait(self.cluster, target, self.pace)

    def ask(self, base_url: str) -> list[smoke.Answer]:
        """Asks the new revision, as soon as its address leads to it.

        Raises:
            SmokeFailure: If it does not answer; with the missing policy where a mesh refuses us.
        """
        deadline = time.monotonic() + self.pace.settle
        try:
            while True:
                try:
                    smoke.models(base_url)
                    break
                except smoke.SmokeFailure as failure:
                    if failure.status not in NOT_YET or time.monotonic() > deadline:
                        raise
                time.sleep(self.pace.poll)
            return self.prompts(base_url, self.model)
        except smoke.SmokeFailure as failure:
            if failure.status != 403:
                raise
            raise mesh.explained(failure, self.cluster.namespace, self.name) from None

    def target(self) -> rollout.Target:
        """Returns what is waited for; to be called before the change, whose traces it looks for."""
        existing, before = self.existing, 0
        if existing and not self.canary and rollout.revision_of(existing) == self.revision:
            deployment = self.cluster.get("apps/v1", "Deployment", rollout.workload_name(existing))
            changed = not _same(existing, self.manifest)
            before = deployment["metadata"].get("generation", 0) if deployment and changed else 0
        return rollout.Target(self.name, self.revision, self.canary, existing, before)


def replace_service(release: Release) -> Outcome:
    """Replaces the running revision, or makes the first one."""
    with release.guarded():
        return bring_up(release)


def bring_up(release: Release) -> Outcome:
    """Applies a release, waits for its pods and asks them; what undoes a failure is the caller's block."""
    target = release.target()
    release.apply(release.manifest)
    service = release.wait(target)
    base_url = address(service["status"]["address"]["url"])
    return Outcome(service, base_url, release.ask(base_url))


def address(url: str) -> str:
    """Returns the root of the OpenAI API at a service's address."""
    return url.rstrip("/") + "/v1"


def _same(existing: Manifest, manifest: Manifest) -> bool:
    predictor, wanted = existing["spec"]["predictor"], manifest["spec"]["predictor"]
    return all(predictor.get(key) == value for key, value in wanted.items())
