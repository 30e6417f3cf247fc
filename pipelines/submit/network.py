"""CA certificates and proxy of the connection to the API, and readable connection errors."""

import contextlib
import ipaddress
import os
import ssl
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests.utils
import urllib3
from kfp_server_api import Configuration

from llm_finetune.components.shared.errors import UserError

CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
NAME_MISMATCH = (62, 64)  # OpenSSL: X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


def ca_bundle(ca_file: Path | None) -> str | None:
    """Returns the file with the CA certificates to verify the server with.

    Args:
        ca_file: Value of --ca-file; None uses SSL_CERT_FILE or REQUESTS_CA_BUNDLE.

    Returns:
        The file; None for the certificates of certifi.

    Raises:
        UserError: If the file contains no certificates.
    """
    source, file = "--ca-file", str(ca_file or "")
    if not file:
        source, file = next(
            ((name, os.environ[name]) for name in CERTIFICATE_VARIABLES if os.environ.get(name)), ("", "")
        )
    if not file:
        return None
    try:
        ssl.create_default_context(cafile=file)
    except OSError as error:
        raise UserError(
            f"{source} {file}: {error.strerror or error}. Expected a file of PEM certificates, each starting with "
            "-----BEGIN CERTIFICATE-----"
        ) from error
    return file


def configure_proxy(config: Configuration) -> None:
    """Sets the proxy from HTTP_PROXY, HTTPS_PROXY and NO_PROXY, if they define one for the API's host.

    Args:
        config: Configuration of the client, with the host set.

    Raises:
        UserError: If the proxy is not an HTTP proxy.
    """
    if config.proxy or _is_loopback(config.host):  # a proxy cannot reach a forwarded port
        return
    proxies = requests.utils.get_environ_proxies(config.host)
    proxy = requests.utils.select_proxy(config.host, proxies)
    if not proxy:
        return
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    parts = urlsplit(proxy)
    if parts.scheme not in ("http", "https"):
        raise UserError(
            f"the proxy {_without_password(proxy)} for {config.host} is a {parts.scheme} proxy: set HTTPS_PROXY to an "
            "http:// proxy, or add the host to NO_PROXY"
        )
    config.proxy = proxy
    if parts.username:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        config.proxy_headers = urllib3.make_headers(proxy_basic_auth=user)


def explain_connection_error(error: urllib3.exceptions.HTTPError, config: Configuration) -> str:
    """Explains why the API cannot be reached and how to fix it.

    Args:
        error: Error of the request.
        config: Configuration of the client.
    """
    causes = _causes(error)
    last, host = causes[-1], config.host
    if isinstance(last, ssl.SSLCertVerificationError) and last.verify_code in NAME_MISMATCH:
        return f"the certificate of {host} is for another host ({last.verify_message}): pass the name in it as --host"
    if isinstance(last, ssl.SSLCertVerificationError):
        trusted = config.ssl_ca_cert or "the public certificate authorities"
        return (
            f"the certificate of {host} is not trusted ({last.verify_message}) by {trusted}. If a private CA signed "
            "it, pass the CA's certificate as --ca-file, or in SSL_CERT_FILE"
        )
    if isinstance(last, ssl.SSLError):
        return f"the TLS handshake with {host} failed ({last.reason or last}): should the URL start with http://?"
    reason = str(last).rpartition(": ")[2]
    if any(isinstance(cause, urllib3.exceptions.ProxyError) for cause in causes):
        return (
            f"the proxy {_without_password(config.proxy)} cannot connect to {host} ({reason}). Check HTTPS_PROXY or "
            "HTTP_PROXY; add hosts that need no proxy to NO_PROXY"
        )
    return (
        f"cannot connect to {host} ({reason}). Check --host; for a cluster without an ingress run "
        "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80, then pass --host http://localhost:8080"
    )


def is_untrusted_certificate(error: urllib3.exceptions.HTTPError) -> bool:
    """Returns whether the server's certificate was rejected; a retry does not help then."""
    return isinstance(_causes(error)[-1], ssl.SSLCertVerificationError)


def _causes(error: BaseException) -> list[BaseException]:
    """Returns an error of urllib3 and the errors that it wraps, the outermost first."""
    inner = getattr(error, "reason", None) or getattr(error, "original_error", None) or next(iter(error.args), None)
    return [error, *(_causes(inner) if isinstance(inner, BaseException) else [])]


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _without_password(proxy: str) -> str:
    parts = urlsplit(proxy)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
