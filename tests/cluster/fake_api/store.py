"""Objects of the fake cluster with their versions and field owners, and the event log for watches."""

import copy
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from cluster.fake_api import fields

Key = tuple[str, str, str, str]
Object = dict[str, Any]


class Problem(Exception):
    """An error response with a Status object."""

    def __init__(self, status: int, reason: str, message: str, causes: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.causes = status, reason, message, causes or []


class Store:
    """Objects by (apiVersion, kind, namespace, name)."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.objects: dict[Key, Object] = {}
        self.owners: dict[Key, dict[str, set[fields.Path]]] = {}
        self.log: list[tuple[int, str, Key, Object]] = []
        self.version, self.oldest = 100, 0
        self.admission: list[Callable[[Object, Object | None], None]] = []

    def read(self, key: Key) -> Object:
        with self.changed:
            if key not in self.objects:
                raise Problem(404, "NotFound", f'{key[1].lower()}s "{key[3]}" not found')
            return self._shown(key)

    def find(self, kind: str, name: str, namespace: str = "team") -> Object | None:
        """Returns an object by kind and name, for tests and the controller."""
        with self.changed:
            for key in self.objects:
                if key[1] == kind and key[3] == name and key[2] in (namespace, ""):
                    return self._shown(key)
        return None

    def all(self, kind: str) -> list[Object]:
        with self.changed:
            return [self._shown(key) for key in self.objects if key[1] == kind]

    def put(self, obj: Object, manager: str = "kubectl", operation: str = "Update") -> Object:
        """Creates or replaces an object; the manager owns its fields."""
        with self.changed:
            key = key_of(obj)
            old = self.objects.get(key)
            for check in self.admission:
                check(obj, old)
            version = obj["metadata"].get("resourceVersion")
            if old and version and version != old["metadata"]["resourceVersion"]:
                raise Problem(409, "Conflict", f"{key[3]}: the object has been modified; please apply your changes")
            owners = {m: set(paths) for m, paths in self.owners.get(key, {}).items()}
            present = fields.leaves(old or {})
            mine = {path for path, value in fields.leaves(obj).items() if present.get(path) != value}
            for name in owners:
                owners[name] -= mine
            label = f"{manager}/{operation}"
            owners[label] = owners.get(label, set()) | mine
            return self._store(key, obj, old, owners)

    def apply(self, obj: Object, manager: str, force: bool = False, dry_run: bool = False) -> Object:
        """Server-side apply."""
        with self.changed:
            key = key_of(obj)
            old = self.objects.get(key)
            version = obj["metadata"].get("resourceVersion")
            if version and (old is None or version != old["metadata"]["resourceVersion"]):
                raise Problem(
                    409, "Conflict", f'Operation cannot be fulfilled on "{key[3]}": the object has been modified'
                )
            start = old or {"apiVersion": key[0], "kind": key[1], "metadata": {"name": key[3], "namespace": key[2]}}
            try:
                new, owners = fields.apply(start, self.owners.get(key, {}), obj, f"{manager}/Apply", force)
            except fields.Conflict as conflict:
                causes = [
                    {
                        "reason": "FieldManagerConflict",
                        "message": f'conflict with "{owner.split("/")[0]}" using {key[0]}',
                        "field": fields.dotted(path),
                    }
                    for owner, path in conflict.conflicts
                ]
                message = f"Apply failed with {len(causes)} conflicts: " + "; ".join(c["message"] for c in causes)
                raise Problem(409, "Conflict", message, causes) from None
            for check in self.admission:
                check(new, old)
            if dry_run:
                return new
            return self._store(key, new, old, owners)

    def status(self, key: Key, status: Object) -> None:
        """Sets the status only."""
        with self.changed:
            if key in self.objects and self.objects[key].get("status") != status:
                self._event(key, self.objects[key] | {"status": copy.deepcopy(status)}, "MODIFIED")

    def delete(self, key: Key) -> None:
        with self.changed:
            obj = self.objects.get(key)
            if obj is None:
                raise Problem(404, "NotFound", f'{key[1].lower()}s "{key[3]}" not found')
            if obj["metadata"].get("finalizers"):
                self._event(key, obj | {"metadata": obj["metadata"] | {"deletionTimestamp": _now()}}, "MODIFIED")
                return
            self._event(key, obj, "DELETED")
            del self.objects[key]
            self.owners.pop(key, None)
            for other, held in list(self.objects.items()):
                owners = held["metadata"].get("ownerReferences") or []
                if any(
                    o["kind"] == key[1] and o["name"] == key[3] and o["uid"] == obj["metadata"]["uid"] for o in owners
                ):
                    self.delete(other)

    def expire(self) -> None:
        """Expires all current resource versions for watches."""
        with self.changed:
            self.oldest = self.version

    def _store(self, key: Key, new: Object, old: Object | None, owners: dict[str, set[fields.Path]]) -> Object:
        metadata = dict(new["metadata"])
        metadata.pop("managedFields", None)
        if old is None:
            metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": _now(), "generation": 1}
        else:
            kept = old["metadata"]
            grown = kept.get("generation", 1) + (old.get("spec") != new.get("spec"))
            metadata |= {name: kept[name] for name in ("uid", "creationTimestamp")} | {"generation": grown}
            new = new | ({"status": old["status"]} if "status" in old and "status" not in new else {})
        self.owners[key] = owners
        same = old is not None and {**old, "metadata": _bare(old)} == {**new, "metadata": _bare({"metadata": metadata})}
        if same:
            return self._shown(key)
        return self._event(key, copy.deepcopy(new | {"metadata": metadata}), "MODIFIED" if old else "ADDED")

    def _event(self, key: Key, obj: Object, kind: str) -> Object:
        self.version += 1
        obj = obj | {"metadata": obj["metadata"] | {"resourceVersion": str(self.version)}}
        self.objects[key] = obj
        self.log.append((self.version, kind, key, self._shown(key)))
        self.changed.notify_all()
        return self._shown(key)

    def _shown(self, key: Key) -> Object:
        obj = copy.deepcopy(self.objects[key])
        obj["metadata"]["managedFields"] = [
            {
                "manager": label.rpartition("/")[0],
                "operation": label.rpartition("/")[2],
                "apiVersion": key[0],
                "fieldsType": "FieldsV1",
                "fieldsV1": fields.as_tree(paths),
            }
            for label, paths in self.owners.get(key, {}).items()
        ]
        return obj


def key_of(obj: Object) -> Key:
    metadata = obj["metadata"]
    return obj["apiVersion"], obj["kind"], metadata.get("namespace", ""), metadata["name"]


def _bare(obj: Object) -> Object:
    return {k: v for k, v in obj["metadata"].items() if k not in ("resourceVersion", "managedFields")}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
