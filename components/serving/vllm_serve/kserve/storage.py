"""Checks that the serving pods' account can reach the model's store."""

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
        cluster: Where.
        deployment: Its service account is looked at.
        model: Where the model lies.
        secret: Secret that must hold the keys; empty takes whichever of the account's fits.

    Returns:
        What is missing, each with its fix, and what is only worth a note.
    """
    name, space = deployment.service_account, cluster.namespace
    account = cluster.get("v1", "ServiceAccount", name)
    if account is None:
        fix = f"kubectl -n {space} create serviceaccount {name}, with the store's secret in its `secrets`"
        return [f"service account {name} does not exist: {fix} (manifests/base has one)"], []
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
        "only a public bucket can be read, unless the nodes' own identity may"
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
            return [], [f"secret {name} says {HTTPS} differently from the artifact's store, which needs {value!r}"]
        return [], []
    if identity and not model.endpoint:
        return [], []
    if holders:
        found = ", ".join(f"{s['metadata']['name']} ({_endpoint(s) or 'AWS'})" for s in holders)
        fix = f"Annotate the right one: kubectl -n {space} annotate secret NAME {ENDPOINT}={model.endpoint} --overwrite"
        return [f"the model lies at {model.endpoint}, but service account {account} has keys for {found}. {fix}"], []
    half = [
        secret["metadata"]["name"] for secret in secrets if {"accesskey", "secretkey"} & set(secret.get("data") or {})
    ]
    why = f" (secret {', '.join(half)} has accesskey and secretkey, which KServe does not read)" if half else ""
    if not model.endpoint and not wanted:
        return [], [
            f"service account {account} has no secret with {' and '.join(KEYS)}{why}: only a public bucket works"
        ]
    return [_make_secret(space, account, model, wanted, why)], []


def _endpoint(secret: Manifest) -> str:
    return str((secret["metadata"].get("annotations") or {}).get(ENDPOINT, ""))


def _not_listed(space: str, account: str, secret: str) -> str:
    patch = f'{{"secrets":[{{"name":"{secret}"}}]}}'
    return (
        f"secret {secret} is not among the secrets of service account {account}, so KServe does not see it: kubectl -n "
        f"{space} patch serviceaccount {account} -p '{patch}'"
    )


def _make_secret(space: str, account: str, model: Storage, wanted: str, why: str) -> str:
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
    return f"service account {account} has no secret with {' and '.join(KEYS)}{at}{why}. Make one:\n     " + (
        "\n     ".join(steps)
    )
