"""Puts a deployment back as it was when anything after the change fails, an interruption included."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from llm_finetune.components.serving.vllm_serve.kserve import rollout
from llm_finetune.components.serving.vllm_serve.kserve.cluster import MANAGER, Cluster, Manifest
from llm_finetune.components.serving.vllm_serve.kserve.diagnosis import Pace
from llm_finetune.components.serving.vllm_serve.kserve.rollout import API, KIND
from llm_finetune.components.shared.errors import UserError

CANARY_SHARE = "canaryTrafficPercent"


def own_fields(existing: Mapping[str, Any]) -> Manifest:
    """Returns the part of an object that we applied, read from its managed fields.

    Applying exactly that again takes back what was applied since and touches nobody else's fields.

    Args:
        existing: The object with its `metadata.managedFields`.

    Returns:
        A manifest to apply; with nothing but the name where nothing is ours.
    """
    metadata = existing["metadata"]
    name = {key: metadata[key] for key in ("name", "namespace") if key in metadata}
    ours: Manifest = {}
    for entry in metadata.get("managedFields") or []:
        if entry.get("manager") == MANAGER and entry.get("operation") == "Apply" and not entry.get("subresource"):
            ours = _picked(existing, entry.get("fieldsV1") or {})
    identity = {"apiVersion": existing["apiVersion"], "kind": existing["kind"]}
    return ours | identity | {"metadata": (ours.get("metadata") or {}) | name}


@contextlib.contextmanager
def put_back_on_failure(
    cluster: Cluster, name: str, revision: str, existing: Manifest | None, pace: Pace, keep_failed: bool,
    canary: str = "",
) -> Iterator[None]:  # fmt: skip
    """Undoes the change of an InferenceService when the block fails.

    Args:
        cluster: Where.
        name: The InferenceService.
        revision: The revision that the block applies.
        existing: The InferenceService before the block; None if there was none.
        pace: How long to wait for the old revision.
        keep_failed: Whether a first deployment that failed stays.
        canary: Name of the canary entry that carries the revision, if it is one.

    Raises:
        UserError: With the failure and what became of the deployment.
    """
    try:
        yield
    except rollout.Superseded:
        raise
    except UserError as failure:
        print(f"{str(failure).splitlines()[0]}\nputting {name} back as it was", flush=True)
        outcome = _undo(cluster, name, revision, existing, pace, keep_failed, canary, waiting=True)
        raise UserError(f"{str(failure).rstrip('.')}.\n{outcome}") from None
    except BaseException:
        # A pod that is being deleted has half a minute: put back, but don't wait for it.
        outcome = _undo(cluster, name, revision, existing, pace, keep_failed, canary, waiting=False)
        print(outcome, file=sys.stderr, flush=True)
        raise


def _undo(
    cluster: Cluster, name: str, revision: str, existing: Manifest | None, pace: Pace, keep_failed: bool, canary: str,
    waiting: bool,
) -> str:  # fmt: skip
    """Undoes the change and returns what became of it."""
    where = f"{KIND} {cluster.namespace}/{name}"
    try:
        current = cluster.get(API, KIND, name)
        if current is None:
            return f"{where} does not exist" + (" any more; it was not made again" if existing else "; nothing is left")
        if existing and current["spec"] == existing["spec"]:
            return f"{where} is as it was before"
        if rollout.revision_of(current, canary) != revision:
            return f"{where} was changed by someone else meanwhile and was left as it is"
        if existing is None:
            return _remove(cluster, name, where, pace, keep_failed, waiting)
        return _restore(cluster, name, where, existing, current, pace, waiting)
    except UserError as second:
        return (
            f"Putting {where} back failed as well: {second}\nIt is left as it is; look at it with "
            f"kubectl -n {cluster.namespace} describe inferenceservice {name}"
        )


def _remove(cluster: Cluster, name: str, where: str, pace: Pace, keep_failed: bool, waiting: bool) -> str:
    if keep_failed:
        return f"{where} was left as it is (keep_failed); remove it with kubectl -n {cluster.namespace} delete " + (
            f"inferenceservice {name}"
        )
    remove(cluster, name, pace, waiting)
    return f"{where}, which did not exist before, was removed"


def remove(cluster: Cluster, name: str, pace: Pace, waiting: bool = True) -> None:
    """Deletes an InferenceService and, where asked to, waits until it is gone.

    Raises:
        UserError: If it is still there after `pace.gone` seconds.
    """
    cluster.delete(API, KIND, name)
    deadline = time.monotonic() + pace.gone
    while waiting and (left := cluster.get(API, KIND, name)) is not None:
        if time.monotonic() > deadline:
            holders = ", ".join(left["metadata"].get("finalizers") or []) or "none"
            raise UserError(f"{KIND} {name} is still being deleted after {pace.gone:.0f} s (finalizers: {holders})")
        cluster.changed(left, pace.poll)


def _restore(
    cluster: Cluster, name: str, where: str, existing: Manifest, current: Manifest, pace: Pace, waiting: bool
) -> str:
    before = own_fields(existing)
    if rollout.mode_of(current) == "Knative" and current["spec"]["predictor"].get(CANARY_SHARE):
        # Without this, the traffic goes to the newest ready revision until the old spec has made one: to the bad one.
        cluster.apply(_with_share(own_fields(current), 0))
        current = cluster.get(API, KIND, name) or current
    cluster.apply_over(before, current)
    revision = rollout.revision_of(existing)
    told = f"the previous revision {revision}" if revision else "the previous state"
    conditions = {c["type"]: c["status"] for c in (existing.get("status") or {}).get("conditions") or []}
    if conditions.get("Ready") != "True":
        return f"{where}: {told} was put back; it was not ready before either"
    if not waiting:
        return f"{where}: {told} was put back (not waited for)"
    try:
        rollout.wait(cluster, rollout.Target(name, revision, before=current), pace)
    except UserError as second:
        return f"{where}: {told} was put back, but does not serve: {second}"
    return f"{where}: {told} was put back and serves"


def _with_share(manifest: Manifest, percent: int) -> Manifest:
    predictor = manifest["spec"]["predictor"] | {CANARY_SHARE: percent}
    return manifest | {"spec": manifest["spec"] | {"predictor": predictor}}


def _picked(value: Any, fields: Mapping[str, Any]) -> Any:
    """Returns the part of a value that managed fields name; `f:` is a member, `k:` a list item by its keys."""
    if not fields:
        return value
    if isinstance(value, list):
        kept = []
        for item in value:
            for field, inner in fields.items():
                if field.startswith("k:"):
                    keys = json.loads(field[2:])
                    if isinstance(item, dict) and all(item.get(key) == wanted for key, wanted in keys.items()):
                        kept.append(_picked(item, inner) | keys)
                elif field.startswith("v:") and json.loads(field[2:]) == item:
                    kept.append(item)
        return kept
    members = {field[2:]: inner for field, inner in fields.items() if field.startswith("f:")}
    return {name: _picked(value[name], inner) for name, inner in members.items() if name in value}
