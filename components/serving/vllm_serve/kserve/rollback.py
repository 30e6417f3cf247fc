"""Rolls back an InferenceService after a failure or an interruption."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from llm_finetune.components.serving.vllm_serve.kserve import rollout
from llm_finetune.components.serving.vllm_serve.kserve.cluster import MANAGER, Cluster, Manifest
from llm_finetune.components.serving.vllm_serve.kserve.diagnosis import Timeouts
from llm_finetune.components.serving.vllm_serve.kserve.rollout import API, KIND
from llm_finetune.components.shared.errors import UserError

CANARY_SHARE = "canaryTrafficPercent"


def applied_fields(existing: Manifest) -> Manifest:
    """Returns the fields of an object that this field manager has applied, read from its managed fields.

    Applying them again reverts later applies and keeps the fields of other managers.

    Args:
        existing: The object with its `metadata.managedFields`.

    Returns:
        A manifest to apply; with the identity only if this manager has applied nothing.
    """
    metadata = existing["metadata"]
    name = {key: metadata[key] for key in ("name", "namespace") if key in metadata}
    applied: Manifest = {}
    for entry in metadata.get("managedFields") or []:
        if entry.get("manager") == MANAGER and entry.get("operation") == "Apply" and not entry.get("subresource"):
            applied = _select_fields(existing, entry.get("fieldsV1") or {})
    identity = {"apiVersion": existing["apiVersion"], "kind": existing["kind"]}
    return applied | identity | {"metadata": (applied.get("metadata") or {}) | name}


@contextlib.contextmanager
def roll_back_on_failure(
    cluster: Cluster, name: str, revision: str, existing: Manifest | None, timeouts: Timeouts, keep_failed: bool,
    canary: str = "",
) -> Iterator[None]:  # fmt: skip
    """Restores an InferenceService if the block fails.

    Args:
        cluster: The cluster.
        name: Name of the InferenceService.
        revision: The revision that the block applies.
        existing: The InferenceService before the block; None if it did not exist.
        timeouts: Timeouts of the rollout of the old revision.
        keep_failed: Whether to keep a first deployment that failed.
        canary: Name of the canary entry with the revision; empty for the predictor.

    Raises:
        UserError: The failure, and the result of the rollback.
    """
    try:
        yield
    except rollout.Superseded:
        raise
    except UserError as failure:
        print(f"{str(failure).splitlines()[0]}\nrestoring {name}", flush=True)
        outcome = _roll_back(cluster, name, revision, existing, timeouts, keep_failed, canary, waiting=True)
        raise UserError(f"{str(failure).rstrip('.')}.\n{outcome}") from None
    except BaseException:
        # The pod of this step has 30 s until SIGKILL: restore the service, but do not wait for it.
        outcome = _roll_back(cluster, name, revision, existing, timeouts, keep_failed, canary, waiting=False)
        print(outcome, file=sys.stderr, flush=True)
        raise


def _roll_back(
    cluster: Cluster, name: str, revision: str, existing: Manifest | None, timeouts: Timeouts, keep_failed: bool,
    canary: str, waiting: bool,
) -> str:  # fmt: skip
    """Restores the InferenceService and returns a description of the result."""
    where = f"{KIND} {cluster.namespace}/{name}"
    try:
        current = cluster.get(API, KIND, name)
        if current is None:
            return f"{where} was deleted; it was not created again" if existing else f"{where} does not exist"
        if existing and current["spec"] == existing["spec"]:
            return f"{where} is unchanged"
        if rollout.revision_of(current, canary) != revision:
            return f"{where} was changed by another client and was not restored"
        if existing is None:
            return _remove(cluster, name, where, timeouts, keep_failed, waiting)
        return _restore(cluster, name, where, existing, current, timeouts, waiting)
    except UserError as second:
        describe = f"kubectl -n {cluster.namespace} describe inferenceservice {name}"
        return f"Restoring {where} failed: {second}\nInspect it with {describe}"


def _remove(cluster: Cluster, name: str, where: str, timeouts: Timeouts, keep_failed: bool, waiting: bool) -> str:
    if keep_failed:
        delete = f"kubectl -n {cluster.namespace} delete inferenceservice {name}"
        return f"{where} was kept (keep_failed); delete it with {delete}"
    remove(cluster, name, timeouts, waiting)
    return f"{where}, which did not exist before, was deleted"


def remove(cluster: Cluster, name: str, timeouts: Timeouts, waiting: bool = True) -> None:
    """Deletes an InferenceService and, with `waiting`, waits until it is deleted.

    Raises:
        UserError: If it still exists after `timeouts.deletion` seconds.
    """
    cluster.delete(API, KIND, name)
    deadline = time.monotonic() + timeouts.deletion
    while waiting and (left := cluster.get(API, KIND, name)) is not None:
        if time.monotonic() > deadline:
            holders = ", ".join(left["metadata"].get("finalizers") or []) or "none"
            raise UserError(
                f"{KIND} {name} is still being deleted after {timeouts.deletion:.0f} s (finalizers: {holders})"
            )
        cluster.wait_for_change(left, timeouts.poll)


def _restore(
    cluster: Cluster, name: str, where: str, existing: Manifest, current: Manifest, timeouts: Timeouts, waiting: bool
) -> str:
    before = applied_fields(existing)
    if rollout.mode_of(current) == "Knative" and current["spec"]["predictor"].get(CANARY_SHARE):
        # Otherwise the failed revision, the latest ready one, receives all traffic until the old spec has a new one.
        cluster.apply(_with_share(applied_fields(current), 0))
        current = cluster.get(API, KIND, name) or current
    cluster.apply_if_unchanged(before, current)
    revision = rollout.revision_of(existing)
    previous = f"the previous revision {revision}" if revision else "the previous state"
    conditions = {c["type"]: c["status"] for c in (existing.get("status") or {}).get("conditions") or []}
    if conditions.get("Ready") != "True":
        return f"{where}: {previous} was restored; it was not ready before the change"
    if not waiting:
        return f"{where}: {previous} was restored; its readiness was not checked"
    try:
        rollout.wait(cluster, rollout.Target(name, revision, before=current), timeouts)
    except UserError as second:
        return f"{where}: {previous} was restored, but is not ready: {second}"
    return f"{where}: {previous} was restored and is ready"


def _with_share(manifest: Manifest, percent: int) -> Manifest:
    predictor = manifest["spec"]["predictor"] | {CANARY_SHARE: percent}
    return manifest | {"spec": manifest["spec"] | {"predictor": predictor}}


def _select_fields(value: Any, fields: Manifest) -> Any:
    """Returns the part of a value that a `fieldsV1` tree selects: `f:` a member, `k:` and `v:` a list item."""
    if not fields:
        return value
    if isinstance(value, list):
        kept = []
        for item in value:
            for field, inner in fields.items():
                if field.startswith("k:"):
                    keys = json.loads(field[2:])
                    if isinstance(item, dict) and all(item.get(key) == wanted for key, wanted in keys.items()):
                        kept.append(_select_fields(item, inner) | keys)
                elif field.startswith("v:") and json.loads(field[2:]) == item:
                    kept.append(item)
        return kept
    members = {field[2:]: inner for field, inner in fields.items() if field.startswith("f:")}
    return {name: _select_fields(value[name], inner) for name, inner in members.items() if name in value}
