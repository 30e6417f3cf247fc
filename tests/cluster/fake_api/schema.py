"""Schema of the InferenceService in each generation of KServe, and its validation."""

import functools
import json
from pathlib import Path
from typing import Any

from cluster.fake_api.store import Problem

TEXT, NUMBER, FLAG, ANYTHING = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {}
OBJECT = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def closed(**properties: Any) -> dict[str, Any]:
    """Returns the schema of an object without additional properties."""
    return {"type": "object", "properties": properties}


def listed(item: Any) -> dict[str, Any]:
    return {"type": "array", "items": item}


def structural(generation: str) -> dict[str, Any]:
    """Returns a schema with the fields of the suite, for tests without the CRD schemas."""
    model = closed(
        modelFormat=closed(name=TEXT, version=TEXT), name=TEXT, runtime=TEXT, storageUri=TEXT, args=listed(TEXT),
        env=listed(OBJECT), resources=OBJECT,
    )  # fmt: skip
    predictor = closed(
        annotations=OBJECT, labels=OBJECT, name=TEXT, serviceAccountName=TEXT, automountServiceAccountToken=FLAG,
        enableServiceLinks=FLAG, minReplicas=NUMBER, maxReplicas=NUMBER, timeout=NUMBER,
        terminationGracePeriodSeconds=NUMBER, deploymentStrategy=OBJECT, nodeSelector=OBJECT,
        tolerations=listed(OBJECT), canaryTrafficPercent=NUMBER, model=model,
    )  # fmt: skip
    if generation != "0.15":
        predictor["properties"]["storageUris"] = listed(closed(uri=TEXT, mountPath=TEXT))
    spec = closed(predictor=predictor)
    if generation >= "0.20":
        entry = {"type": "object", "properties": {"predictor": predictor, "trafficPercent": NUMBER}}
        spec["properties"]["canary"] = listed(entry | {"required": ["predictor", "trafficPercent"]})
    return {"type": "object", "properties": {"spec": spec, "status": OBJECT, "metadata": OBJECT}}


class Schemas:
    """The schemas of one cluster."""

    def __init__(self, generation: str, folder: str = "") -> None:
        """Reads the CRD schemas of KServe 0.20 from a folder, and removes the fields that older generations lack."""
        self.service = structural(generation)
        self.exact = bool(folder)
        if folder:
            self.service = json.loads(_text(f"{folder}/serving.kserve.io_InferenceService_v1beta1.json"))
            spec = self.service["properties"]["spec"]["properties"]
            if generation < "0.20":
                del spec["canary"]
                del spec["predictor"]["properties"]["storageContainerName"]
            if generation == "0.15":
                del spec["predictor"]["properties"]["storageUris"]
        kind = {"group": "serving.kserve.io", "version": "v1beta1", "kind": "InferenceService"}
        self.service["x-kubernetes-group-version-kind"] = [kind]

    def document(self, group: str, version: str) -> dict[str, Any]:
        if (group, version) != ("serving.kserve.io", "v1beta1"):
            raise Problem(404, "NotFound", "no such document")
        return {"openapi": "3.0.0", "components": {"schemas": {"InferenceService": self.service}}}

    def check(self, obj: dict[str, Any], _: Any) -> None:
        """Rejects unknown fields; a real API server drops them."""
        if obj["kind"] != "InferenceService":
            return
        mistakes = list(_mistakes(obj.get("spec", {}), self.service["properties"]["spec"], "spec"))
        if mistakes:
            raise Problem(
                422, "Invalid", f"InferenceService {obj['metadata']['name']} is invalid: {'; '.join(mistakes)}"
            )


def _mistakes(value: Any, schema: dict[str, Any], path: str) -> Any:
    types = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "number": (int, float)}
    if schema.get("x-kubernetes-int-or-string") or "type" not in schema:
        return
    if not isinstance(value, types[schema["type"]]) or (schema["type"] == "integer" and isinstance(value, bool)):
        yield f"{path}: {value!r} is no {schema['type']}"
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _mistakes(item, schema.get("items", {}), f"{path}[{index}]")
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is none of {schema['enum']}"
    if isinstance(value, dict):
        yield from (f"{path}.{name} is required" for name in schema.get("required", []) if name not in value)
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        for name, inner in value.items():
            if name in known:
                yield from _mistakes(inner, known[name], f"{path}.{name}")
            elif isinstance(others, dict):
                yield from _mistakes(inner, others, f"{path}.{name}")
            elif not schema.get("x-kubernetes-preserve-unknown-fields") and known:
                yield f"{path}.{name} is unknown"


@functools.cache
def _text(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")
