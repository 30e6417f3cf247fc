"""Whose cluster it is, and which namespace is the card's own: the pod's or the kubeconfig's, never one of each."""

from pathlib import Path

import pytest
from cluster.fake_api.server import FakeCluster
from kubernetes import config
from kubernetes.config import incluster_config

from llm_finetune.components.shared import kubernetes_api
from llm_finetune.components.shared.errors import UserError


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounts the files of a service account, as a pod has them, and gives the user a kubeconfig besides."""
    import certifi

    for name, content in (("token", "secret"), ("ca.crt", Path(certifi.where()).read_text()), ("namespace", "pods\n")):
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(kubernetes_api, "POD_NAMESPACE", tmp_path / "namespace")
    api = FakeCluster()
    path = api.kubeconfig(tmp_path / "kubeconfig", namespace="team")
    api.stop()
    monkeypatch.setattr(config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))


def test_a_pod_speaks_to_its_cluster_in_its_namespace(account: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    client, namespace = kubernetes_api.connect(retry_delay=0)
    assert (client.configuration.host, namespace) == ("https://10.0.0.1:443", "pods")


def test_files_of_an_account_alone_leave_the_kubeconfigs_cluster_and_namespace(account: None) -> None:
    client, namespace = kubernetes_api.connect(retry_delay=0)
    assert client.configuration.host.startswith("http://127.0.0.1:")
    assert namespace == "team"


def test_without_either_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"no Kubernetes cluster to deploy to: .* set KUBECONFIG"):
        kubernetes_api.connect(retry_delay=0)
