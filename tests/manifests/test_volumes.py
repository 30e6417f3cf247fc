"""Volumes that the cards can write to: the Job that gives them to group 0, and where its pod may run."""

import os
import subprocess
from pathlib import Path

import pytest
from manifests.kustomize import GPUS, MANIFESTS, OVERLAYS, Manifest, build, compose, named, of_kind

from llm_finetune.pipelines.options import read_options
from llm_finetune.pipelines.recipe import read_recipe

JOB = "llm-finetune-volumes"
IMAGE_GROUP = 0


def pod_of(built: tuple[Manifest, ...]) -> Manifest:
    return dict(named(built, "Job", JOB)["spec"]["template"]["spec"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_whoever_compiles_with_volumes_gets_writable_ones(overlay: str) -> None:
    built = build(MANIFESTS / "overlays" / overlay)
    options = [read_options(file, []) for file in (MANIFESTS / "overlays" / overlay).rglob("compile.yaml")]
    mounts = any(option.model_cache or option.checkpoints for option in options)
    assert mounts == (JOB in {job["metadata"]["name"] for job in of_kind(built, "Job")})


def test_job_mounts_every_claim_and_ends_in_a_mesh() -> None:
    built = build(MANIFESTS / "overlays/kubeflow-profile")
    claims = {claim["metadata"]["name"] for claim in of_kind(built, "PersistentVolumeClaim")}
    pod = pod_of(built)
    assert {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]} == claims
    mounted = pod["containers"][0]["volumeMounts"]
    assert {mount["name"] for mount in mounted} == {volume["name"] for volume in pod["volumes"]}
    assert all(mount["mountPath"].startswith("/volumes/") for mount in mounted)
    labels = named(built, "Job", JOB)["spec"]["template"]["metadata"]["labels"]
    assert labels == {"sidecar.istio.io/inject": "false"} and not pod["automountServiceAccountToken"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a folder away")
def test_its_script_opens_a_volume_to_the_group_of_the_images(tmp_path: Path) -> None:
    container = pod_of(build(MANIFESTS / "overlays/gke"))["containers"][0]
    owners = {"fresh": (0, 0), "used": (1000, 1000)}
    for name, owner in owners.items():
        (tmp_path / name).mkdir(mode=0o755)
        os.chown(tmp_path / name, *owner)
    script = container["args"][0].replace("/volumes", str(tmp_path))
    subprocess.run([*container["command"], script], check=True, capture_output=True)
    for name in owners:
        found = (tmp_path / name).stat()
        assert found.st_gid == IMAGE_GROUP and found.st_mode & 0o2070 == 0o2070


@pytest.mark.parametrize("gpu", GPUS)
def test_volumes_of_gke_bind_where_the_gpus_are(gpu: str, tmp_path: Path) -> None:
    """A disk lies in one zone, that of its first pod: on a machine without a GPU it could be the wrong one."""
    pod = pod_of(compose(tmp_path, "overlays/gke", [f"overlays/gke/gpus/{gpu}"]))
    cluster = read_recipe(MANIFESTS / f"overlays/gke/gpus/{gpu}/recipe.yaml").recipe["cluster"]
    assert pod["nodeSelector"] == cluster["node_selector"] and pod["tolerations"] == cluster["tolerations"]


def test_overlays_without_the_job_take_the_gpus_too(tmp_path: Path) -> None:
    assert of_kind(compose(tmp_path, "overlays/kind-cpu", ["overlays/gke/gpus/l4"]), "Job") == []
