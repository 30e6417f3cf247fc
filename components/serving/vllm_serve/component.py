"""vLLM Serve: deploys the fine-tuned model and proves that it answers."""

from kfp import dsl

from llm_finetune.components.shared.images import control_component


@control_component()
def vllm_serve(
    merged_model: dsl.Input[dsl.Model],
    eval_report: dsl.Input[dsl.Metrics],
    deployment_info: dsl.Output[dsl.Artifact],
    deployment_page: dsl.Output[dsl.Markdown],
    deployment_name: str = "llm-finetune-v1",
    port: int = 8001,
    max_batch_tokens: int = 8192,
    target: str = "kserve",
    namespace: str = "",
    replicas: int = 1,
    max_surge: int = 1,
    gpu_type: str = "nvidia.com/gpu",
    gpu_count: str = "1",
    gpu_memory_utilization: float = 0.9,
    cpu: str = "4",
    memory: str = "24Gi",
    node_selector: dict = {},
    max_model_len: int = 0,
    dtype: str = "auto",
    serve_adapter: bool = False,
    adapter_base: str = "",
    adapter_service: str = "",
    remove_adapters: list = [],
    canary_percent: int = 0,
    candidate_first: bool = False,
    runtime: str = "llm-vllm",
    service_account: str = "llm-serving",
    storage_uri: str = "",
    storage_endpoint: str = "",
    storage_secret: str = "",
    deployment_mode: str = "Standard",
    ready_timeout: int = 1800,
    unschedulable_timeout: int = 1200,
    request_timeout: int = 120,
    keep_failed: bool = False,
    golden_prompts: list = [],
    answer_tokens: int = 128,
    require_stop: bool = True,
    settings: dict = {},
    package_version: str = "",
):
    """Serves the model with vLLM behind an OpenAI-compatible API, and asks it real questions before it is called done.

    Args:
        merged_model: The model in Hugging Face layout (Merge & Export).
        eval_report: Figures of Evaluate, whose file holds validation rows to ask the model.
        deployment_info: JSON: name, base_url, model, example_curl, revision, ready and first-token times, where
            the questions come from, answers.
        deployment_page: The same to look at.
        deployment_name: Name of the deployment, and the model name that clients ask for.
        port: Port on this machine with target local; 0 takes a free one. Unused on a cluster.
        max_batch_tokens: Most tokens that one step of the engine works on, over all requests.
        target: kserve (InferenceService on this cluster), local (server process on this machine) or manifest (YAML
            for a GitOps repository, nothing is deployed).
        namespace: Namespace to deploy to; empty is the step's own.
        replicas: Pods.
        max_surge: Pods that an update may run beside the old ones; 0 ends the old pod first and needs no spare GPU.
        gpu_type: Resource name of the accelerator.
        gpu_count: Accelerators per pod, as text; 0 for none.
        gpu_memory_utilization: Share of the accelerator's memory that vLLM takes, 0 to 1.
        cpu: CPU request per pod.
        memory: Memory request and limit per pod.
        node_selector: Labels of the nodes to run on.
        max_model_len: Longest request and answer together, in tokens; 0 is the model's own.
        dtype: Type to compute in: float32, bfloat16, float16, or auto, which is float32 for weights stored in float32,
            and vLLM's own choice for others and for a base with adapters.
        serve_adapter: Serve the LoRA adapter on its base instead of the merged weights.
        adapter_base: Base model of the adapter: folder or URI; empty is what the adapter names. One on the Hub is
            fetched at the commit that the adapter was trained on, unless hf://owner/model:revision says another.
        adapter_service: InferenceService of the base that several adapters share, and the base's model name; empty is
            the deployment's name and `-base`. Unused with target local.
        remove_adapters: Names of adapters to take off the shared base in the same update.
        canary_percent: Share of the traffic for the new revision, 1 to 99; 0 replaces the old one, or promotes the
            canary that serves the same model.
        candidate_first: Deploy and ask a service of its own (the name and `-candidate`) before the real one is
            touched; takes its accelerators for that time.
        runtime: Name of the ServingRuntime.
        service_account: Service account of the pods, which holds the secrets of the model's store.
        storage_uri: Where the cluster finds the model (s3://, gs://, pvc://, oci:// or hf://), such as the copy that
            Merge & Export made at its export_uri; empty is where the artifact lies.
        storage_endpoint: host:port of an S3-compatible store; empty is the one that the artifact names.
        storage_secret: Secret of the service account with the store's keys; empty takes whichever fits.
        deployment_mode: KServe's deployment mode, Standard or Knative, for a new deployment.
        ready_timeout: Seconds until the model must be ready.
        unschedulable_timeout: Seconds that pods may wait for a node before the deployment is given up.
        request_timeout: Seconds for one answer.
        keep_failed: Leave a first deployment that failed in the cluster, to look at it.
        golden_prompts: Questions that must be answered: texts, or lists of {role, content}; empty takes two validation
            rows.
        answer_tokens: Most tokens of an answer to them.
        require_stop: On a cluster, refuse a model that ends none of its answers by itself.
        settings: Settings by name that take precedence over the parameters above (the card's section of the recipe).
        package_version: Version that compiled the pipeline; the step refuses another one.
    """
    arguments = locals()
    from llm_finetune.components.serving.vllm_serve import step
    from llm_finetune.components.shared.card import card, lineage
    from llm_finetune.components.shared.card_logs import record
    from llm_finetune.components.shared.files import content_hash
    from llm_finetune.components.shared.metadata import recorded

    with card(package_version):
        chosen = step.Settings.of(arguments)
        model, info, page = merged_model, deployment_info, deployment_page
        metadata = recorded(model, with_store=True)
        paths = model.path, info.path, page.path
        facts = step.vllm_serve(*paths, chosen, model.uri, metadata, eval_report.path)
        # The metadata store is no place for what the rows say.
        short = {name: fact for name, fact in facts.items() if name not in ("answers", "example_curl", "manifests")}
        produced_by = lineage({"merged_model": model, "eval_report": eval_report})
        info.metadata.update(short | produced_by | {"content_hash": content_hash(info.path)})
        record("vllm_serve", **step.outcome(facts))
