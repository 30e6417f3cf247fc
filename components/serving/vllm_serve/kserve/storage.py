"""Checks that the service account of the pods can read the storage of the model."""

from llm_finetune.components.serving.vllm_serve.kserve.cluster import Cluster, Manifest
from llm_finetune.components.serving.vllm_serve.kserve.manifests import Deployment
from llm_finetune.components.shared.engine.storage_uris import Storage

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
ENDPOINT, HTTPS = "serving.kserve.io/s3-endpoint", "serving.kserve.io/s3-usehttps"
GOOGLE_KEY = "gcloud-application-credentials.json"
IDENTITIES = ("eks.amazonaws.com/role-arn", "iam.gke.io/gcp-service-account")


def check(cluster: Cluster, deployment: Deployment, model: Storage, secret: str = "") -> tuple[list[str], list[str]]:
    """Checks service account, claim, secret and keys.

    Args:
        cluster: The cluster.
        deployment: The deployment.
        model: Storage of the model.
        secret: Secret that must have the keys; empty for any matching secret of the service account.

    Returns:
        Problems with their fixes, and notes.
    """
    name, space = deployment.settings.service_account, cluster.namespace
    account = cluster.get("v1", "ServiceAccount", name)
    if account is None:
        fix = f"kubectl -n {space} create serviceaccount {name}, with the secret of the store in its `secrets`"
        return [f"service account {name} does not exist: {fix} (see manifests/base)"], []
    scheme, _, rest = model.uri.partition("://")
    if scheme == "pvc":
        claim = rest.split("/")[0]
        there = cluster.get("v1", "PersistentVolumeClaim", claim) is not None
        return ([] if there else [f"claim {claim} of {model.uri} does not exist in namespace {space}"]), []
    if scheme not in ("s3", "gs"):
        return [], []
    listed = [entry["name"] for entry in account.get("secrets") or []]
    if secret and secret not in listed:
        return [_not_listed(space, name, secret)], []
    secrets = [found for entry in ([secret] if secret else listed) if (found := cluster.get("v1", "Secret", entry))]
    identity = next((kind for kind in IDENTITIES if kind in (account["metadata"].get("annotations") or {})), "")
    if scheme == "gs":
        return _google(name, secrets, identity)
    return _s3(space, name, model, secret, secrets, identity)


def _google(account: str, secrets: list[Manifest], identity: str) -> tuple[list[str], list[str]]:
    if identity or any(GOOGLE_KEY in (secret.get("data") or {}) for secret in secrets):
        return [], []
    return [], [
        f"service account {account} has neither Workload Identity ({IDENTITIES[1]}) nor a secret with {GOOGLE_KEY}: "
        "it can read public buckets only, unless the nodes have access"
    ]


def _s3(
    space: str, account: str, model: Storage, wanted: str, secrets: list[Manifest], identity: str
) -> tuple[list[str], list[str]]:
    holders = [secret for secret in secrets if all(key in (secret.get("data") or {}) for key in KEYS)]
    at_endpoint = [secret for secret in holders if _endpoint(secret) == model.endpoint] if model.endpoint else holders
    if at_endpoint:
        secure = (at_endpoint[0]["metadata"].get("annotations") or {}).get(HTTPS, "1") != "0"
        if model.endpoint and secure != model.secure:
            name, value = at_endpoint[0]["metadata"]["name"], "1" if model.secure else "0"
            return [], [
                f"annotation {HTTPS} of secret {name} does not match the store of the artifact, which needs {value!r}"
            ]
        return [], []
    if identity and not model.endpoint:
        return [], []
    if holders:
        found = ", ".join(f"{s['metadata']['name']} ({_endpoint(s) or 'AWS'})" for s in holders)
        fix = f"Annotate the right one: kubectl -n {space} annotate secret NAME {ENDPOINT}={model.endpoint} --overwrite"
        return [
            f"the model is stored at {model.endpoint}, but service account {account} has keys for {found}. {fix}"
        ], []
    partial = [
        secret["metadata"]["name"] for secret in secrets if {"accesskey", "secretkey"} & set(secret.get("data") or {})
    ]
    why = f" (secret {', '.join(partial)} has accesskey and secretkey, which KServe ignores)" if partial else ""
    if not model.endpoint and not wanted:
        return [], [
            f"service account {account} has no secret with {' and '.join(KEYS)}{why}: it can read public buckets only"
        ]
    return [_create_secret_fix(space, account, model, wanted, why)], []


def _endpoint(secret: Manifest) -> str:
    return str((secret["metadata"].get("annotations") or {}).get(ENDPOINT, ""))


def _not_listed(space: str, account: str, secret: str) -> str:
    patch = f'{{"secrets":[{{"name":"{secret}"}}]}}'
    return (
        f"secret {secret} is not among the secrets of service account {account}, so KServe does not use it: kubectl -n "
        f"{space} patch serviceaccount {account} -p '{patch}'"
    )


def _create_secret_fix(space: str, account: str, model: Storage, wanted: str, why: str) -> str:
    name, source = wanted or "llm-serving-s3", model.secret or "mlpipeline-minio-artifact"
    copied = {"AWS_ACCESS_KEY_ID": "accesskey", "AWS_SECRET_ACCESS_KEY": "secretkey"}
    literals = " ".join(
        f"--from-literal={key}=\"$(kubectl -n {space} get secret {source} -o jsonpath='{{.data.{old}}}' | base64 -d)\""
        for key, old in copied.items()
    )
    annotations = f"{ENDPOINT}={model.endpoint} {HTTPS}={'1' if model.secure else '0'}" if model.endpoint else ""
    steps = [f"kubectl -n {space} create secret generic {name} {literals}"]
    steps += [f"kubectl -n {space} annotate secret {name} {annotations}"] if annotations else []
    steps += [f'kubectl -n {space} patch serviceaccount {account} -p \'{{"secrets":[{{"name":"{name}"}}]}}\'']
    at = f" for {model.endpoint}" if model.endpoint else ""
    return f"service account {account} has no secret with {' and '.join(KEYS)}{at}{why}. Create one:\n     " + (
        "\n     ".join(steps)
    )
