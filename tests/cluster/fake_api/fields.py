"""Server-side apply: field ownership, conflicts, and removal of fields without an owner."""

import copy
import json
from typing import Any

Path = tuple[str, ...]
# Lists that are merged by key in the CRD schemas of KServe; others are atomic.
KEYED = {"env": "name", "volumeMounts": "mountPath", "ports": "containerPort"}
UNOWNED = {("f:apiVersion",), ("f:kind",), ("f:status",)}
IDENTITY = ("name", "namespace", "resourceVersion", "uid", "generation", "managedFields", "creationTimestamp")


class Conflict(Exception):
    """Another manager owns fields with other values."""

    def __init__(self, conflicts: list[tuple[str, Path]]) -> None:
        super().__init__(str(conflicts))
        self.conflicts = conflicts


def leaves(value: Any, path: Path = ()) -> dict[Path, Any]:
    """Returns the fields of a manifest with their values."""
    if isinstance(value, dict) and value:
        found: dict[Path, Any] = {}
        for name, inner in value.items():
            here = (*path, f"f:{name}")
            if here in UNOWNED or (path == ("f:metadata",) and name in IDENTITY):
                continue
            key = KEYED.get(name)
            if key and isinstance(inner, list) and all(isinstance(item, dict) for item in inner):
                for item in inner:
                    token = "k:" + json.dumps({key: item[key]})
                    for member, content in item.items():
                        found |= leaves(content, (*here, token, f"f:{member}"))
            else:
                found |= leaves(inner, here)
        return found
    return {path: value}


def apply(current: dict[str, Any], owners: dict[str, set[Path]], manifest: dict[str, Any], manager: str, force: bool):
    """Applies a manifest to an object.

    Returns:
        The new object and the new owners.
    """
    wanted, present = leaves(manifest), leaves(current)
    conflicts = [
        (other, path)
        for other, owned in owners.items()
        if other != manager
        for path, value in wanted.items()
        if path in owned and present.get(path) != value
    ]
    if conflicts and not force:
        raise Conflict(conflicts)
    result, owners = copy.deepcopy(current), {name: set(paths) for name, paths in owners.items()}
    # The key of a list item is removed last, because it identifies the item.
    gone = sorted(owners.get(manager, set()) - set(wanted), key=lambda path: path[-1][2:] in KEYED.values())
    for path in gone:
        # A map that was applied empty is kept if it has members of other managers.
        shared = any(path in paths for name, paths in owners.items() if name != manager)
        if not shared and path in present:
            _remove(result, path)
    for path, value in wanted.items():
        if value == {} and any(path == other[: len(path)] for other in present):
            continue  # Maps are merged: an empty one removes nothing.
        _put(result, path, copy.deepcopy(value))
    for name, path in conflicts:
        owners[name].discard(path)
    owners[manager] = set(wanted)
    return result, {name: paths for name, paths in owners.items() if paths}


def as_tree(paths: set[Path]) -> dict[str, Any]:
    """Returns owned paths as `fieldsV1`."""
    tree: dict[str, Any] = {}
    for path in sorted(paths):
        node = tree
        for token in path:
            node = node.setdefault(token, {})
            if token.startswith("k:"):
                node.setdefault(".", {})
    return tree


def dotted(path: Path) -> str:
    return "".join(f".{token[2:]}" if token.startswith("f:") else f"[{token[2:]}]" for token in path)


def _put(obj: Any, path: Path, value: Any) -> None:
    node = obj
    for index, token in enumerate(path):
        last = index == len(path) - 1
        if token.startswith("f:"):
            if last:
                node[token[2:]] = value
            else:
                following = path[index + 1]
                if not isinstance(node.get(token[2:]), list if following.startswith("k:") else dict):
                    node[token[2:]] = [] if following.startswith("k:") else {}
                node = node[token[2:]]
        else:
            keys = json.loads(token[2:])
            found = next((item for item in node if all(item.get(k) == v for k, v in keys.items())), None)
            if found is None:
                found = dict(keys)
                node.append(found)
            node = found


def _remove(obj: Any, path: Path) -> None:
    token, rest = path[0], path[1:]
    if token.startswith("f:"):
        name = token[2:]
        if not isinstance(obj, dict) or name not in obj:
            return
        if rest:
            _remove(obj[name], rest)
            if obj[name] in ({}, []):
                del obj[name]
        else:
            del obj[name]
    elif isinstance(obj, list):
        keys = json.loads(token[2:])
        for item in [item for item in obj if all(item.get(k) == v for k, v in keys.items())]:
            if rest[-1][2:] not in keys:
                _remove(item, rest)
            elif set(item) <= set(keys):
                obj.remove(item)
