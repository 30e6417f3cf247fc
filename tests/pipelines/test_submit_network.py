"""`llm-finetune submit` behind a company's own authority and proxy."""

import base64
import datetime
import ipaddress
import re
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kfp_api import serving
from kfp_server_api import Configuration
from submitting import OPEN, refused, submitted

from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.submit.network import configure_proxy


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that nobody has signed but itself, and its key."""
    folder, key = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubeflow.test")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(names, critical=False).add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem, private = folder / "ca.pem", folder / "key.pem"
    pem.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, private


@pytest.fixture
def secured(here, certificate):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    with serving(tls) as api:
        api.story = [OPEN]
        yield api


def test_an_authority_of_ones_own_is_given_as_a_file_or_by_the_environment(secured, certificate, monkeypatch):
    assert submitted(secured, ca_file=certificate[0])[0] == 0
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    assert submitted(secured)[0] == 0
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    with pytest.raises(UserError, match=f"SSL_CERT_FILE {re.escape(str(certificate[1]))}: "):
        submitted(secured)


def test_a_certificate_that_is_not_trusted_is_told_with_the_way_out(secured):
    said = refused(secured)
    assert f"the certificate of {secured.url} is not trusted (self-signed certificate)" in said
    assert "pass the CA's certificate as --ca-file, or in SSL_CERT_FILE" in said
    assert "port-forward" not in said


def test_a_certificate_for_another_host_is_told(secured, certificate):
    said = refused(secured, host=secured.url.replace("127.0.0.1", "localhost"), ca_file=certificate[0])
    assert "is for another host (Hostname mismatch" in said


def test_an_address_without_tls_is_told(api):
    assert "should the URL start with http://?" in refused(api, host=api.url.replace("http", "https"))


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_without_certificates_is_told(api, tmp_path, content):
    if content:
        (tmp_path / "ca.pem").write_text(content)
    said = refused(api, ca_file=tmp_path / "ca.pem")
    assert said.startswith(f"--ca-file {tmp_path}/ca.pem: ")
    assert "Expected a file of PEM certificates" in said


@pytest.mark.parametrize("host", ["http://127.0.0.1:1", "http://no-such-host.invalid"])
def test_a_host_that_is_out_of_reach_is_told(api, host):
    said = refused(api, host=host)
    assert f"cannot connect to {host}" in said
    assert "Check --host" in said


def test_a_proxy_leads_to_the_api_but_for_hosts_that_need_none(api, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", api.url.replace("//", "//me:p%40ss@"))
    assert submitted(api, host="http://kubeflow.test/")[0] == 0
    sent = api.headers[0]
    assert (sent["Host"], sent["proxy-authorization"]) == (
        "kubeflow.test", f"Basic {base64.b64encode(b'me:p@ss').decode()}",
    )  # fmt: skip
    monkeypatch.setenv("NO_PROXY", ".test")
    with pytest.raises(UserError, match=r"cannot connect to http://kubeflow\.test"):
        submitted(api, host="http://kubeflow.test/")


def test_a_proxy_that_is_down_is_named_without_its_password(api, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "me:secret@127.0.0.1:1")
    said = refused(api, host="https://kubeflow.test/pipeline")
    assert "the proxy http://127.0.0.1:1 cannot connect to https://kubeflow.test/pipeline" in said
    assert "to NO_PROXY" in said and "secret" not in said
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
    assert "the proxy socks5://127.0.0.1:1 for https://kubeflow.test is a socks5 proxy" in refused(
        api, host="https://kubeflow.test"
    )


@pytest.mark.parametrize(
    ("host", "proxied"),
    [
        ("https://kubeflow.test/pipeline", True),
        ("https://10.2.3.4", False),
        ("https://172.16.0.1", True),
        ("https://localhost:8080", False),
        ("https://127.0.0.1:8443", False),
        ("https://[::1]:8443", False),
        ("ml-pipeline.kubeflow.svc.cluster.local:8888", False),
    ],
)
def test_no_proxy_is_asked_for_this_machine_and_for_ranges_of_addresses(here, monkeypatch, host, proxied):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8")
    config = Configuration(host=host)
    configure_proxy(config)
    assert bool(config.proxy) is proxied
