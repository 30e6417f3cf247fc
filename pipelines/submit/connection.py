"""Connection to the API of Kubeflow Pipelines, with readable errors."""

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp
import urllib3
from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH, ServiceAccountTokenVolumeCredentials
from kfp_server_api import ApiException, Configuration, V2beta1GetHealthzResponse

from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.submit.network import (
    ca_bundle,
    configure_proxy,
    explain_connection_error,
    is_untrusted_certificate,
)

COOKIE = "KUBEFLOW_SESSION_COOKIE"
AUDIENCE = "pipelines.kubeflow.org"
PAUSE_SECONDS = 0.5  # before the first retry; doubled for each further one
GATEWAY_ERRORS = (429, 502, 503, 504)
# Timeouts in seconds; the kfp client sets none.
CONNECT_SECONDS, READ_SECONDS, WRITE_SECONDS = 10, 30, 300


class ApiUnreachable(UserError):
    """The API does not answer; a later request may succeed."""


class NotAuthorized(UserError):
    """The API rejects the credentials; a request with a new token may succeed."""


class _Client(kfp.Client):  # type: ignore[misc, unused-ignore]
    """The kfp client with timeouts, retries after gateway errors, and without redirects to a login page."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        rest = self._healthz_api.api_client.rest_client
        request = rest.request

        def request_with_timeout(method: str, *args: Any, **kwargs: Any) -> Any:
            seconds = READ_SECONDS if method == "GET" else WRITE_SECONDS
            return request(method, *args, **kwargs | {"_request_timeout": (CONNECT_SECONDS, seconds)})

        rest.request = request_with_timeout

    def _load_config(self, *args: Any, **kwargs: Any) -> Configuration:
        config = super()._load_config(*args, **kwargs)
        # urllib3 retries idempotent requests only; for the others see `Connection.create`.
        config.retries = urllib3.Retry(
            total=6, other=0, redirect=False, status_forcelist=GATEWAY_ERRORS, backoff_factor=PAUSE_SECONDS,
            raise_on_status=False,
        )  # fmt: skip
        configure_proxy(config)
        return config

    def get_kfp_healthz(self, sleep_duration: int = 0) -> V2beta1GetHealthzResponse:
        """Skips the health check of the constructor, which retries for 25 seconds; `connect` makes it."""
        return V2beta1GetHealthzResponse(multi_user=False)


@dataclass(frozen=True)
class Connection:
    """A connection to an API whose health check succeeded.

    Attributes:
        client: kfp client.
        host: Address of the API.
        namespace: The user's namespace; empty on a single-user installation.
        credentials: Source of the credentials, for messages; empty without credentials.
    """

    client: kfp.Client
    host: str
    namespace: str
    credentials: str

    @contextlib.contextmanager
    def explain_errors(self, action: str) -> Iterator[None]:
        """Turns errors of the API into messages with a remedy.

        Args:
            action: What the block does, such as `creating the run`.

        Raises:
            ApiUnreachable: If the API does not answer, or answers with a server error.
            NotAuthorized: If it rejects the credentials.
            UserError: If it rejects the request for another reason.
        """
        try:
            yield
        except ApiException as error:
            raise self._explain(action, error) from error
        except urllib3.exceptions.HTTPError as error:
            kind = UserError if is_untrusted_certificate(error) else ApiUnreachable
            raise kind(explain_connection_error(error, self.client._existing_config)) from error
        except OSError as error:  # the client reads the token file for every request
            raise NotAuthorized(f"{self.credentials}: {error.strerror or error}") from error

    def create(self, action: str, find: Callable[[], Any], make: Callable[[], Any]) -> Any:
        """Creates an object exactly once, even if a gateway drops the response.

        Args:
            action: What is done, such as `creating the run`.
            find: Returns the object, or None if it does not exist.
            make: Creates the object.

        Returns:
            The object.
        """
        with self.explain_errors(action), contextlib.redirect_stdout(None):  # the client prints links
            try:
                return make()
            except ApiException as error:
                # 409: another client created it first, or it has another display name.
                if error.status not in (*GATEWAY_ERRORS, 409):
                    raise
                found = find()
                if error.status == 409 and not found:
                    raise
                return found or make()
            except (urllib3.exceptions.ProtocolError, urllib3.exceptions.ReadTimeoutError):
                return find() or make()

    def _explain(self, action: str, error: ApiException) -> UserError:
        status, message = int(error.status or 0), api_message(error)
        if status == 401 or 300 <= status < 400:
            return NotAuthorized(self._not_authenticated(status, (error.headers or {}).get("Location", "")))
        if status == 403:
            where = f"namespace {self.namespace}" if self.namespace else "this installation"
            return NotAuthorized(
                f"{action} was refused (403): {message}. Either {where} does not exist, or the account has no "
                "permissions there: request the role kubeflow-edit in the profile, or choose another --namespace"
            )
        if status in GATEWAY_ERRORS:
            return ApiUnreachable(f"{action}: {self.host} repeatedly returned {status} ({message}). Try again later")
        return (ApiUnreachable if status >= 500 else UserError)(f"{action} was refused ({status}): {message}")

    def _not_authenticated(self, status: int, location: str) -> str:
        redirect = f", redirect to {location}" if location else ""
        return f"the request to {self.host} is not authenticated ({status}{redirect}). " + (
            f"{self.credentials} was rejected: it may have expired, or belong to another audience or server. Create a "
            f"token with kubectl create token ACCOUNT --audience={AUDIENCE} and pass its file as --token-file, or set "
            f"{COOKIE} to the cookie of a logged-in browser"
            if self.credentials
            else f"No credentials were sent: pass --token-file, or set {COOKIE}"
        )


def api_message(error: ApiException) -> str:
    """Returns the error message of the API in one line."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        body = json.loads(error.body)
        return " ".join(str(body.get("message") or body.get("error") or body).split())
    return " ".join(str(error.reason or error.body or "no reason given").split())


def connect(host: str, namespace: str, token_file: Path | None, ca_file: Path | None = None) -> Connection:
    """Connects to Kubeflow Pipelines and checks that it answers.

    Args:
        host: URL of the API, such as https://kubeflow.example.com/pipeline; empty for the cluster of this pod or of the
            kubeconfig.
        namespace: The user's namespace; empty on a single-user installation.
        token_file: File with a token, read again for every request.
        ca_file: CA certificates to verify the API's certificate with; None uses those of the environment, or the public
            ones.

    Returns:
        The connection.

    Raises:
        UserError: If Kubeflow Pipelines does not answer, or the namespace is missing.
    """
    credentials, source, cookie = None, "", os.environ.get(COOKIE)
    mounted = os.environ.get(KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH)
    if token_file and not token_file.is_file():
        raise UserError(f"--token-file {token_file}: no such file")
    if token_file or (not cookie and Path(mounted).is_file()):
        credentials, source = ServiceAccountTokenVolumeCredentials(token_file or mounted), str(token_file or mounted)
    elif cookie:
        source = f"the cookie in {COOKIE}"
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        # The client's `namespace` is that of the installation; requests pass the user's namespace.
        client = _Client(host=host or None, credentials=credentials, cookies=cookie, ssl_ca_cert=ca_bundle(ca_file))
    connection = Connection(client, client._existing_config.host, namespace, source)
    with connection.explain_errors("the health check of Kubeflow Pipelines"):
        try:
            health = client._healthz_api.healthz_service_get_healthz()
        except ApiException as error:
            if error.status == 404:
                raise UserError(_no_pipelines_at(connection.host)) from error
            raise
    if "json" not in client._healthz_api.api_client.last_response.getheader("content-type", ""):
        raise UserError(_no_pipelines_at(connection.host))
    if health.multi_user and not namespace:
        raise UserError(
            f"{connection.host} is a multi-user installation: pass the namespace of your profile as --namespace"
        )
    return connection


def _no_pipelines_at(host: str) -> str:
    return (
        f"Kubeflow Pipelines does not answer at {host}: /apis/v2beta1/healthz does not exist. "
        "Behind Kubeflow's dashboard the URL ends in /pipeline"
    )
