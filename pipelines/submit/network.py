"""The way to the API: which certificates are trusted, which proxy is asked, and what helps where it is barred."""

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
OTHER_NAME = (62, 64)  # OpenSSL's codes for a certificate of another host or address


def certificates(ca_file: Path | None) -> str | None:
    """Returns the file with the certificates that a server's own has to come from.

    Args:
        ca_file: What was given as --ca-file; None takes the environment's.

    Returns:
        The file; None for the list that comes with Python's certifi.

    Raises:
        UserError: If there are no certificates in it.
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
            f"{source} {file}: {error.strerror or error}. It takes a file of certificates in PEM, each of which begins "
            "with -----BEGIN CERTIFICATE-----"
        ) from error
    return file


def take_proxy(config: Configuration) -> None:
    """Sets the proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name for the API's address, if they name one.

    Args:
        config: The client's configuration, with its host.

    Raises:
        UserError: If it is none that is asked by HTTP.
    """
    if config.proxy or _on_this_machine(config.host):  # a forwarded port is out of any proxy's reach
        return
    proxies = requests.utils.get_environ_proxies(config.host)
    proxy = requests.utils.select_proxy(config.host, proxies)
    if not proxy:
        return
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    parts = urlsplit(proxy)
    if parts.scheme not in ("http", "https"):
        raise UserError(
            f"the proxy {_without_password(proxy)} for {config.host} is a {parts.scheme} proxy: name one that begins "
            "with http:// in HTTPS_PROXY, or the host in NO_PROXY"
        )
    config.proxy = proxy
    if parts.username:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        config.proxy_headers = urllib3.make_headers(proxy_basic_auth=user)


def barred(error: urllib3.exceptions.HTTPError, config: Configuration) -> str:
    """Says why the API could not be asked, and what helps.

    Args:
        error: What ended the request.
        config: The client's configuration.
    """
    causes = _causes(error)
    last, host = causes[-1], config.host
    if isinstance(last, ssl.SSLCertVerificationError) and last.verify_code in OTHER_NAME:
        return f"{host} shows a certificate for another host ({last.verify_message}): give --host as it is named there"
    if isinstance(last, ssl.SSLCertVerificationError):
        trusted = config.ssl_ca_cert or "the list of public authorities"
        return (
            f"{host} shows a certificate that is not trusted ({last.verify_message}), going by {trusted}. If an "
            "authority of your own has signed it, give that one's certificate as --ca-file, or in SSL_CERT_FILE"
        )
    if isinstance(last, ssl.SSLError):
        return f"{host} does not speak TLS as it should ({last.reason or last}): does its address begin with http://?"
    told = str(last).rpartition(": ")[2]
    if any(isinstance(cause, urllib3.exceptions.ProxyError) for cause in causes):
        return (
            f"the proxy {_without_password(config.proxy)} does not lead to {host} ({told}). Check HTTPS_PROXY or "
            "HTTP_PROXY; a host that is reached without it belongs in NO_PROXY"
        )
    return (
        f"{host} is out of reach ({told}). Check --host; for a cluster without an ingress: "
        "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80, then --host http://localhost:8080"
    )


def untrusted(error: urllib3.exceptions.HTTPError) -> bool:
    """Returns whether it is the server's certificate that was refused, which no second try changes."""
    return isinstance(_causes(error)[-1], ssl.SSLCertVerificationError)


def _causes(error: BaseException) -> list[BaseException]:
    """Returns an error of urllib3 and what is wrapped in it, the outermost first."""
    inner = getattr(error, "reason", None) or getattr(error, "original_error", None) or next(iter(error.args), None)
    return [error, *(_causes(inner) if isinstance(inner, BaseException) else [])]


def _on_this_machine(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _without_password(proxy: str) -> str:
    parts = urlsplit(proxy)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
