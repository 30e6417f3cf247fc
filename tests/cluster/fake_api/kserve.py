"""Simulates KServe (three generations), Knative, the Deployment controller and the kubelet in a thread.

`Behavior` sets the behavior of a revision by its storageUri.
"""

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cluster.fake_api.model import Models, Serving
from cluster.fake_api.server import FakeCluster
from cluster.fake_api.store import Problem, key_of

REVISION = "llm-finetune/revision"
MODE = "serving.kserve.io/deploymentMode"
OWNED_BY = "serving.kserve.io/inferenceservice"
SPELLING = {"RawDeployment": "Standard", "Serverless": "Knative"}
Object = dict[str, Any]


@dataclass
class Behavior:
    """Behavior of a revision.

    Attributes:
        seconds: Time until its pods are ready.
        pod: Status of its pods if they do not become ready; else None.
        deployment: Condition of its Deployment, which then has no pods; else None.
        model: `status.modelStatus` of the InferenceService.
        logs: Log by (container, previous).
        events: Messages of NotTriggerScaleUp events of its pods.
        serving: Responses of its pods.
    """

    seconds: float = 0.05
    pod: Object | None = None
    deployment: Object | None = None
    model: Object | None = None
    logs: dict[tuple[str, bool], str] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    serving: Serving = field(default_factory=Serving)


class KServe(threading.Thread):
    """The controllers of a fake cluster."""

    def __init__(self, api: FakeCluster, models: Models, generation: str = "0.20", default: str = "Serverless") -> None:
        super().__init__(daemon=True)
        self.api, self.store, self.models = api, api.store, models
        self.generation, self.default = generation, default
        self.behaviors: dict[str, Behavior] = {}
        self.splits = False
        self.tags = True
        self.tick: Callable[[], None] = lambda: None
        self._born: dict[str, float] = {}
        self._shown: dict[str, Object] = {}
        self._going = True
        self.store.admission.append(self._webhook)

    def stop(self) -> None:
        self._going = False
        self.join()

    def run(self) -> None:
        while self._going:
            with self.store.changed:
                self.tick()
                services = self.store.all("InferenceService")
                for service in services:
                    try:
                        self._reconcile(service)
                    except Problem as problem:  # Deleted at the same time.
                        if problem.status != 404:
                            raise
                self._sweep({service["metadata"]["name"] for service in services})
            time.sleep(0.02)

    def mode_of(self, service: Object) -> str:
        """Returns the mode in the spelling of this generation; 0.15 uses the default for an unknown one."""
        wanted = (service["metadata"].get("annotations") or {}).get(MODE, "")
        if self.generation == "0.15":
            known = (service.get("status") or {}).get("deploymentMode")
            return known or (wanted if wanted in SPELLING else self.default)
        return SPELLING.get(wanted, wanted) or SPELLING[self.default]

    def _webhook(self, obj: Object, old: Object | None) -> None:
        if obj["kind"] != "InferenceService" or not old:
            return
        in_force = (old.get("status") or {}).get("deploymentMode")
        wanted = (obj["metadata"].get("annotations") or {}).get(MODE)
        if in_force and wanted and wanted != in_force:
            message = f"admission webhook denied the request: update rejected: deploymentMode {in_force} -> {wanted}"
            raise Problem(400, "BadRequest", message)

    def _reconcile(self, service: Object) -> None:
        mode = self.mode_of(service)
        knative = SPELLING.get(mode, mode) == "Knative"
        status = (self._knative if knative else self._standard)(service) | {"deploymentMode": mode}
        if service["metadata"].get("deletionTimestamp"):
            return
        self.store.status(key_of(service), status)

    def _standard(self, service: Object) -> Object:
        spec, name = service["spec"], service["metadata"]["name"]
        main, behavior = _named(name, spec["predictor"]), self._behavior(spec["predictor"])
        done = self._rollout(service, main, spec["predictor"])
        canaries = [self._canary(service, entry) for entry in spec.get("canary") or []]
        if "gateway.networking.k8s.io" not in self.api.hidden:
            refs = [{"name": main, "weight": 100 - sum(c["trafficPercent"] for c in canaries if self.splits)}]
            if self.splits:
                refs += [{"name": f"{name}-{c['name']}-predictor", "weight": c["trafficPercent"]} for c in canaries]
            self._own(service, "gateway.networking.k8s.io/v1", "HTTPRoute", name, {"rules": [{"backendRefs": refs}]})
        served = bool((service.get("status") or {}).get("address"))
        # During a rollout, 0.16 to 0.19 set Ready to Unknown; the others keep the old value.
        stale = "True" if self.generation == "0.15" or self.generation >= "0.20" else "Unknown"
        ready = "True" if done else stale if served else "False"
        status = _conditions(ready, "True" if done or served else "False") | self._model(behavior, done)
        if done or served:
            status["address"] = {"url": self.models.url(f"team/{main}")}
        return status | ({"canaryStatuses": canaries} if canaries else {})

    def _canary(self, service: Object, entry: Object) -> Object:
        name, predictor = service["metadata"]["name"], entry["predictor"]
        done = self._rollout(service, _named(name, predictor), predictor)
        return {"name": predictor["name"], "ready": done, "trafficPercent": entry["trafficPercent"]}

    def _rollout(self, service: Object, name: str, predictor: Object) -> bool:
        """Reconciles a Deployment and its pods; returns whether the rollout is complete."""
        inherited = service["metadata"].get("annotations") or {}
        template = {"metadata": {"annotations": inherited | (predictor.get("annotations") or {})},
                    "spec": {"containers": [predictor["model"]]}}  # fmt: skip
        replicas = predictor.get("minReplicas", 1)
        found = self._own(service, "apps/v1", "Deployment", name, {"replicas": replicas, "template": template})
        generation = found["metadata"]["generation"]
        behavior, revision = self._behavior(predictor), template["metadata"]["annotations"].get(REVISION, "")
        age = time.monotonic() - self._born.setdefault(f"{found['metadata']['uid']}/{generation}", time.monotonic())
        good = behavior.pod is None and not behavior.deployment
        done = good and age >= behavior.seconds
        old = [pod for pod in self._pods(name) if pod["metadata"]["annotations"].get(REVISION) != revision]
        if done:
            for pod in old:
                self.store.delete(key_of(pod))
            names = (*_modules(predictor), service["metadata"]["name"])
            served = behavior.serving if behavior.serving.names else dataclasses.replace(behavior.serving, names=names)
            self.models.routes[f"team/{name}"] = served
        if not behavior.deployment:
            for number in range(replicas):
                self._pod(service, name, f"{name}-{revision[:6]}-{number}", revision, behavior, done)
        made = 0 if behavior.deployment else replicas
        available = replicas if done else (len(old) or 0)
        status = {"observedGeneration": generation, "replicas": made + (0 if done else len(old)),
                  "updatedReplicas": made, "availableReplicas": available,
                  "conditions": [behavior.deployment] if behavior.deployment else []}  # fmt: skip
        self.store.status(key_of(found), status)
        return done

    def _knative(self, service: Object) -> Object:
        spec, name = service["spec"], service["metadata"]["name"]
        predictor, behavior = spec["predictor"], self._behavior(spec["predictor"])
        template = {key: value for key, value in predictor.items() if key != "canaryTrafficPercent"}
        owner = f"{name}-predictor"
        found = self._own(service, "serving.knative.dev/v1", "Service", owner, {"template": template})
        created = f"{owner}-{found['metadata']['generation']:05d}"
        revision = self._own(service, "serving.knative.dev/v1", "Revision", created, {}, predictor.get("annotations"))
        hashed = (predictor.get("annotations") or {}).get(REVISION, "")
        age = time.monotonic() - self._born.setdefault(revision["metadata"]["uid"], time.monotonic())
        done = behavior.pod is None and not behavior.deployment and age >= behavior.seconds
        before = (service.get("status") or {}).get("components", {}).get("predictor", {})
        ready = created if done else before.get("latestReadyRevision", "")
        self._pod(service, owner, f"{created}-0", hashed, behavior, done)
        conditions = [behavior.deployment] if behavior.deployment else []
        self.store.status(key_of(revision), {"conditions": conditions})
        seen = {"observedGeneration": found["metadata"]["generation"], "latestCreatedRevisionName": created}
        self.store.status(key_of(found), seen | ({"latestReadyRevisionName": ready} if ready else {}))
        share, rolled = predictor.get("canaryTrafficPercent"), before.get("latestRolledoutRevision")
        if done:
            serving = dataclasses.replace(behavior.serving, names=behavior.serving.names or (name,))
            self.models.routes[f"team/{created}"] = serving
        traffic = [{"revisionName": ready, "latestRevision": True, "percent": 100}] if ready else []
        if share is not None and rolled and ready and rolled != ready:
            traffic[0]["percent"] = share
            tagged = (service["metadata"].get("annotations") or {}).get(
                "serving.kserve.io/enable-tag-routing"
            ) == "true"
            if tagged and self.tags:
                traffic[0] |= {"tag": "latest", "url": self.models.url(f"team/{ready}")}
            traffic.append({"revisionName": rolled, "percent": 100 - share, "tag": "prev"})
        elif ready:
            rolled = ready
        if traffic:
            most = max(traffic, key=lambda entry: entry["percent"])["revisionName"]
            self.models.routes[f"team/{name}"] = self.models.routes[f"team/{most}"]
        parts = {"latestCreatedRevision": created, "traffic": traffic}
        parts |= {"latestReadyRevision": ready} if ready else {}
        parts |= {"latestRolledoutRevision": rolled} if rolled else {}
        status = _conditions("True" if done else "Unknown", "True" if ready else "Unknown") | self._model(
            behavior, done
        )
        address = {"address": {"url": self.models.url(f"team/{name}")}} if ready else {}
        return status | address | {"components": {"predictor": parts}}

    def _pod(self, service: Object, owner: str, name: str, revision: str, behavior: Behavior, done: bool) -> None:
        starting = {
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "initContainerStatuses": [{"name": "storage-initializer", "state": {"running": {}}}],
        }
        serving = {"conditions": [{"type": "Ready", "status": "True"}]}
        status = behavior.pod if behavior.pod is not None else serving if done else starting
        for (container, previous), text in behavior.logs.items():
            self.api.logs[(name, container, previous)] = text
        pod = {
            "apiVersion": "v1", "kind": "Pod", "spec": {},
            "metadata": {
                "name": name, "namespace": "team", "annotations": {REVISION: revision} if revision else {},
                "labels": {OWNED_BY: service["metadata"]["name"], "app": owner},
                "ownerReferences": [_reference(service)],
            },
        }  # fmt: skip
        if self.store.find("Pod", name) is None:
            self.store.put(pod)
            for message in behavior.events:
                event = {
                    "apiVersion": "v1",
                    "kind": "Event",
                    "metadata": {"name": f"{name}-event", "namespace": "team"},
                }
                about = {"reason": "NotTriggerScaleUp", "message": message, "involvedObject": {"name": name}}
                self.store.put(event | about)
        self.store.status(key_of(pod), status)

    def _pods(self, owner: str) -> list[Object]:
        return [pod for pod in self.store.all("Pod") if pod["metadata"]["labels"].get("app") == owner]

    def _own(
        self, service: Object, version: str, kind: str, name: str, spec: Object, annotations: Object | None = None
    ) -> Object:
        metadata = {"name": name, "namespace": "team", "ownerReferences": [_reference(service)],
                    "labels": {OWNED_BY: service["metadata"]["name"]}, "annotations": annotations or {}}  # fmt: skip
        return self.store.apply(
            {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}, "kserve", True
        )

    def _sweep(self, services: set[str]) -> None:
        """Deletes Deployments without a predictor, and their pods."""
        wanted = set()
        for service in self.store.all("InferenceService"):
            entries = [service["spec"]["predictor"], *(e["predictor"] for e in service["spec"].get("canary") or [])]
            wanted |= {_named(service["metadata"]["name"], predictor) for predictor in entries}
        for deployment in self.store.all("Deployment"):
            if deployment["metadata"]["name"] not in wanted:
                for pod in self._pods(deployment["metadata"]["name"]):
                    self.store.delete(key_of(pod))
                self.store.delete(key_of(deployment))

    def _behavior(self, predictor: Object) -> Behavior:
        where = predictor["model"].get("storageUri") or " ".join(u["uri"] for u in predictor.get("storageUris") or [])
        return next((behavior for part, behavior in self.behaviors.items() if part in where), Behavior())

    def _model(self, behavior: Behavior, done: bool) -> Object:
        if behavior.model:
            return {"modelStatus": behavior.model}
        return {"modelStatus": {"transitionStatus": "UpToDate" if done else "InProgress"}}


def _named(service: str, predictor: Object) -> str:
    return "-".join(filter(None, [service, predictor.get("name"), "predictor"]))


def _modules(predictor: Object) -> list[str]:
    args = predictor["model"].get("args") or []
    if "--lora-modules" not in args:
        return []
    return [entry.split("=")[0] for entry in args[args.index("--lora-modules") + 1 :]]


def _conditions(ready: str, ingress: str) -> Object:
    conditions = [("PredictorReady", ready), ("IngressReady", ingress), ("Ready", ready)]
    return {"conditions": [{"type": kind, "status": status} for kind, status in conditions]}


def _reference(service: Object) -> Object:
    return {"apiVersion": service["apiVersion"], "kind": service["kind"], "name": service["metadata"]["name"],
            "uid": service["metadata"]["uid"], "controller": True}  # fmt: skip
