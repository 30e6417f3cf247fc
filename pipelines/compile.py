"""Compiles the pipelines: to YAML for upload, or to resources of the Kubernetes API."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

from llm_finetune.components.shared.card import PACKAGE_VERSION
from llm_finetune.components.shared.files import write_text
from llm_finetune.pipelines.finetune import finetune_pipeline
from llm_finetune.pipelines.options import PIPELINE, ClusterOptions
from llm_finetune.pipelines.sharded_data import sharded_data_pipeline

COMPILED = Path(__file__).resolve().parent / "compiled" / "finetune.yaml"
SHARDED = COMPILED.with_name("sharded-data.yaml")
RESOURCES = Path(__file__).resolve().parents[1] / "manifests" / "kfp"


def compile_pipeline(path: Path = COMPILED, options: ClusterOptions | None = None) -> Path:
    """Compiles the fine-tuning pipeline.

    Args:
        path: YAML file to write.
        options: Compile options; None for the defaults.

    Returns:
        The file.
    """
    return _compile(finetune_pipeline(options or ClusterOptions()), path)


def compile_sharded(path: Path = SHARDED, options: ClusterOptions | None = None) -> Path:
    """Compiles the pipeline that prepares a dataset of many files in parallel.

    Args:
        path: YAML file to write.
        options: Compile options; None for the defaults.

    Returns:
        The file.
    """
    return _compile(sharded_data_pipeline(options or ClusterOptions()), path)


def _compile(pipeline: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline, str(path))
    return path


def content_version(compiled: Path) -> str:
    """Returns a version name derived from a compiled file's content: package version and part of a hash."""
    return f"{PACKAGE_VERSION}-{hashlib.sha256(compiled.read_bytes()).hexdigest()[:8]}"


def compile_resources(folder: Path = RESOURCES, options: ClusterOptions | None = None) -> list[Path]:
    """Writes Pipeline and PipelineVersion resources for Kubeflow Pipelines in Kubernetes-native mode.

    A PipelineVersion is immutable, so its name is derived from its content: a changed pipeline becomes a new version.

    Args:
        folder: Folder for `pipeline.yaml` and `pipeline-version.yaml`.
        options: Compile options; None for the defaults.

    Returns:
        The files.
    """
    with tempfile.TemporaryDirectory() as scratch:
        version = content_version(compile_pipeline(Path(scratch) / "finetune.yaml", options))
        both = Path(scratch) / "resources.yaml"
        compiler.Compiler().compile(
            finetune_pipeline(options or ClusterOptions()),
            str(both),
            kubernetes_manifest_format=True,
            kubernetes_manifest_options=KubernetesManifestOptions(
                pipeline_name=PIPELINE,
                pipeline_display_name=PIPELINE,  # `submit` finds the pipeline by this name
                pipeline_version_name=f"{PIPELINE}-{version.replace('.', '-')}",
                pipeline_version_display_name=version,
                include_pipeline_manifest=True,
            ),
        )
        resources = {resource["kind"]: resource for resource in yaml.safe_load_all(both.read_text(encoding="utf-8"))}
    folder.mkdir(parents=True, exist_ok=True)
    files = {"Pipeline": folder / "pipeline.yaml", "PipelineVersion": folder / "pipeline-version.yaml"}
    for kind, file in files.items():
        write_text(file, f"# Written by `make compile`.\n{yaml.safe_dump(resources[kind], sort_keys=False, width=120)}")
    return list(files.values())
