"""Releases one revision: applies it, waits for it, tests it, and rolls back on failure."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from llm_finetune.components.serving.vllm_serve import smoke
from llm_finetune.components.serving.vllm_serve.kserve import mesh, rollback, rollout
from llm_finetune.components.serving.vllm_serve.kserve.cluster import Cluster, Manifest
from llm_finetune.components.serving.vllm_serve.kserve.diagnosis import Timeouts
from llm_finetune.components.serving.vllm_serve.kserve.rollout import KIND

# Routes and meshes are updated some seconds after the pods are ready.
RETRIED_STATUSES = (0, 404, 502, 503, 504)
Ask = Callable[[str, str], list[smoke.Answer]]


@dataclass(frozen=True)
class Outcome:
    """Result of a release.

    Attributes:
        service: The InferenceService.
        base_url: Root of the OpenAI-compatible API, ending in `/v1`.
        answers: Answers to the test prompts.
        share: Share of the traffic, as text.
    """

    service: Manifest
    base_url: str
    answers: list[smoke.Answer]
    share: str = "all of the traffic"


@dataclass(frozen=True)
class Release:
    """A revision to release.

    Attributes:
        cluster: The cluster.
        name: Name of the InferenceService.
        model: Name of the model in requests.
        manifest: The manifest to apply.
        revision: Hash of the revision.
        existing: The InferenceService before the release, if it existed.
        timeouts: Timeouts of the rollout.
        keep_failed: Whether to keep a first deployment that failed.
        ask_prompts: Sends the test prompts, given base URL and model name.
        canary: Name of the canary entry with the revision; empty for the predictor.
    """

    cluster: Cluster
    name: str
    model: str
    manifest: Manifest
    revision: str
    existing: Manifest | None
    timeouts: Timeouts
    keep_failed: bool
    ask_prompts: Ask
    canary: str = ""

    def as_service(self, name: str, manifest: Manifest, existing: Manifest | None) -> "Release":
        """Returns a release of the same model as an InferenceService of another name, which is also the model name."""
        return dataclasses.replace(self, name=name, model=name, manifest=manifest, existing=existing, keep_failed=False)

    def as_canary(self, canary: str) -> "Release":
        """Returns a release of the same model as a canary entry."""
        return dataclasses.replace(self, canary=canary)

    def with_rollback(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context that rolls back on failure."""
        return rollback.roll_back_on_failure(
            self.cluster, self.name, self.revision, self.existing, self.timeouts, self.keep_failed, self.canary
        )

    def apply(self, manifest: Manifest) -> None:
        """Applies a manifest, unless the InferenceService has changed."""
        self.cluster.apply_if_unchanged(manifest, self.existing)
        print(f"applied {KIND} {self.cluster.namespace}/{self.name}, revision {self.revision}", flush=True)

    def wait(self, target: rollout.Target) -> Manifest:
        """Waits for the pods of the revision; see `rollout.wait`."""
        return rollout.wait(self.cluster, target, self.timeouts)

    def ask(self, base_url: str) -> list[smoke.Answer]:
        """Sends the test prompts to the new revision, once it is reachable.

        Raises:
            SmokeFailure: If a request fails; with the missing policy if a service mesh rejects it.
        """
        deadline = time.monotonic() + self.timeouts.settle
        try:
            while True:
                try:
                    smoke.models(base_url)
                    break
                except smoke.SmokeFailure as failure:
                    if failure.status not in RETRIED_STATUSES or time.monotonic() > deadline:
                        raise
                time.sleep(self.timeouts.poll)
            return self.ask_prompts(base_url, self.model)
        except smoke.SmokeFailure as failure:
            if failure.status != 403:
                raise
            raise mesh.explain_refusal(failure, self.cluster.namespace, self.name) from None

    def target(self) -> rollout.Target:
        """Returns the target to wait for; call it before applying the change."""
        existing, before = self.existing, 0
        if existing and not self.canary and rollout.revision_of(existing) == self.revision:
            deployment = self.cluster.get("apps/v1", "Deployment", rollout.workload_name(existing))
            changed = not _predictor_is_unchanged(existing, self.manifest)
            before = deployment["metadata"].get("generation", 0) if deployment and changed else 0
        return rollout.Target(self.name, self.revision, self.canary, existing, before)


def replace_service(release: Release) -> Outcome:
    """Replaces the running revision, or creates the first one."""
    with release.with_rollback():
        return deploy(release)


def deploy(release: Release) -> Outcome:
    """Applies a release, waits for its pods and tests them, without a rollback on failure."""
    target = release.target()
    release.apply(release.manifest)
    service = release.wait(target)
    base_url = address(service["status"]["address"]["url"])
    return Outcome(service, base_url, release.ask(base_url))


def address(url: str) -> str:
    """Returns the root of the OpenAI-compatible API of a service URL."""
    return url.rstrip("/") + "/v1"


def _predictor_is_unchanged(existing: Manifest, manifest: Manifest) -> bool:
    predictor, wanted = existing["spec"]["predictor"], manifest["spec"]["predictor"]
    return all(predictor.get(key) == value for key, value in wanted.items())
