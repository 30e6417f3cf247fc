"""Writes the pipeline as the YAML that Kubeflow takes."""

from pathlib import Path

from kfp import compiler

from llm_finetune.pipelines.finetune import finetune

COMPILED = Path(__file__).parent / "compiled" / "finetune.yaml"


def compile_pipeline(path: Path = COMPILED) -> Path:
    """Compiles the fine-tuning pipeline.

    Args:
        path: YAML file to write.

    Returns:
        The file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(finetune, str(path))
    return path
