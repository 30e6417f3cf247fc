"""Builds kustomizations of the repository, alone or put together the way a user would."""

import functools
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
KUBECTL = Path(sys.executable).with_name("kubectl")
OVERLAYS = ("gke", "onprem-minio", "kubeflow-profile", "kind-cpu")
GPUS = ("l4", "a100", "h100")
ANYWHERE = (
    "external-secrets",
    "gateway-api",
    "knative",
    "kueue",
    "monitoring",
    "node-reader",
    "shared-volumes",
    "spot",
)
# The components that make sense on each overlay: a quota would count Kubeflow's own pods in its namespace, a profile
# has its mesh policy already, and a laptop has neither spot machines nor shared disks.
FITTING = {
    "gke": (*ANYWHERE, "istio-authz"),
    "onprem-minio": (*ANYWHERE, "istio-authz"),
    "kubeflow-profile": (*ANYWHERE, "quota"),
    "kind-cpu": ("gateway-api", "istio-authz", "knative", "monitoring", "node-reader", "writable-volumes"),
}
# Roots that stand for themselves.
APART = (
    "argocd", "argocd/apps", "argocd/serving", "flux", "flux/serving", "cluster/kueue", "serving/plain",
    "serving/autoscaled", "kfp",
)  # fmt: skip


@functools.cache
def build(folder: Path) -> tuple[Manifest, ...]:
    """Returns the objects of a kustomization, as `kubectl kustomize` prints them."""
    done = subprocess.run([str(KUBECTL), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"kubectl kustomize {folder}: {done.stderr}"
    assert not done.stderr, f"kubectl kustomize {folder} warns: {done.stderr}"
    return tuple(yaml.safe_load_all(done.stdout))


def compose(folder: Path, base: str, components: Sequence[str]) -> tuple[Manifest, ...]:
    """Returns an overlay with components on it, from a kustomization written as a user would write it.

    Args:
        folder: Where the kustomization is written.
        base: The overlay, as a path in manifests/.
        components: Names of components, or paths in manifests/.
    """

    def relative(name: str) -> str:
        return os.path.relpath(MANIFESTS / (name if "/" in name else f"components/{name}"), folder)

    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        # Objects of components come without a namespace; the overlay's own is taken for them too.
        "namespace": yaml.safe_load((MANIFESTS / base / "kustomization.yaml").read_text())["namespace"],
        "resources": [relative(base)],
        "components": [relative(name) for name in components],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return build(folder)


def kustomizations() -> Iterator[tuple[Path, Manifest]]:
    """Yields every kustomization.yaml of the repository."""
    for file in sorted(MANIFESTS.rglob("kustomization.yaml")):
        yield file, yaml.safe_load(file.read_text())


def of_kind(manifests: Iterable[Manifest], kind: str) -> list[Manifest]:
    """Returns the objects of a kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def named(manifests: Iterable[Manifest], kind: str, name: str) -> Manifest:
    """Returns one object."""
    return next(manifest for manifest in of_kind(manifests, kind) if manifest["metadata"]["name"] == name)
