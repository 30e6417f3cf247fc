"""Kubeflow Pipelines components that fine-tune an open LLM, evaluate it and serve it with vLLM."""
