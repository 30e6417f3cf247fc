"""Connects to the API of Kubeflow Pipelines, and says readably what it refuses."""

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
from llm_finetune.pipelines.submit.network import barred, certificates, take_proxy, untrusted

COOKIE = "KUBEFLOW_SESSION_COOKIE"
AUDIENCE = "pipelines.kubeflow.org"
PAUSE_SECONDS = 0.5  # before the second try; doubled for each further one
GATEWAY_TROUBLE = (429, 502, 503, 504)
# Seconds for a connection, and for an answer: what was lost on the way is not waited for without end.
CONNECT_SECONDS, READ_SECONDS, WRITE_SECONDS = 10, 30, 300


class OutOfReach(UserError):
    """The API does not answer, which may pass."""


class NotLetIn(UserError):
    """The API does not accept who asks, which a new token may change."""


class _Client(kfp.Client):
    """The kfp client, made to outlive a gateway's hiccup and not to follow a redirect to a login page."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        rest = self._healthz_api.api_client.rest_client
        ask = rest.request

        def ask_in_time(method: str, *args: Any, **kwargs: Any) -> Any:
            read = READ_SECONDS if method == "GET" else WRITE_SECONDS
            return ask(method, *args, **kwargs | {"_request_timeout": (CONNECT_SECONDS, read)})

        rest.request = ask_in_time

    def _load_config(self, *args: Any, **kwargs: Any) -> Configuration:
        config = super()._load_config(*args, **kwargs)
        # Only requests that change nothing are repeated here; see `Connection.create`.
        config.retries = urllib3.Retry(
            total=6, other=0, redirect=False, status_forcelist=GATEWAY_TROUBLE, backoff_factor=PAUSE_SECONDS,
            raise_on_status=False,
        )  # fmt: skip
        take_proxy(config)
        return config

    def get_kfp_healthz(self, sleep_duration: int = 0) -> V2beta1GetHealthzResponse:
        """Leaves the question to `connect`; the constructor would repeat it for 25 seconds."""
        return V2beta1GetHealthzResponse(multi_user=False)


@dataclass(frozen=True)
class Connection:
    """A connection that has answered.

    Attributes:
        client: The kfp client.
        host: Address of the API.
        namespace: The user's namespace; empty on a single-user installation.
        credentials: What was sent to say who asks, for messages.
    """

    client: kfp.Client
    host: str
    namespace: str
    credentials: str

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Turns the API's refusals into messages that say what to do.

        Args:
            what: What is being done, such as `creating the run`.

        Raises:
            OutOfReach: If the API does not answer, or its gateway or database is in trouble.
            NotLetIn: If it does not accept who asks.
            UserError: If it refuses for another reason.
        """
        try:
            yield
        except ApiException as error:
            raise self._refusal(what, error) from error
        except urllib3.exceptions.HTTPError as error:
            raise (UserError if untrusted(error) else OutOfReach)(
                barred(error, self.client._existing_config)
            ) from error
        except OSError as error:  # of the token's file, which the client opens anew for every request
            raise NotLetIn(f"{self.credentials}: {error.strerror or error}") from error

    def create(self, what: str, find: Callable[[], Any], make: Callable[[], Any]) -> Any:
        """Creates something once, even where a gateway loses the answer.

        Args:
            what: What is being done.
            find: Looks for the thing; returns None if it is not there.
            make: Creates it.

        Returns:
            What `make`, or else `find`, returned.
        """
        with self.doing(what), contextlib.redirect_stdout(None):  # the client prints links of its own
            try:
                return make()
            except ApiException as error:
                # 409: somebody else was faster, or it goes by another display name.
                if error.status not in (*GATEWAY_TROUBLE, 409):
                    raise
                found = find()
                if error.status == 409 and not found:
                    raise
                return found or make()
            except (urllib3.exceptions.ProtocolError, urllib3.exceptions.ReadTimeoutError):
                return find() or make()

    def _refusal(self, what: str, error: ApiException) -> UserError:
        status, told = int(error.status or 0), told_by(error)
        if status == 401 or 300 <= status < 400:
            return NotLetIn(self._unknown(status, (error.headers or {}).get("Location", "")))
        if status == 403:
            where = f"namespace {self.namespace}" if self.namespace else "this installation"
            return NotLetIn(
                f"{what} was refused (403): {told}. Either there is no {where}, or the account has no rights there: "
                "ask for kubeflow-edit in your profile, or choose another --namespace"
            )
        if status in GATEWAY_TROUBLE:
            return OutOfReach(f"{what}: {self.host} answers {status} again and again ({told}). Try again later")
        return (OutOfReach if status >= 500 else UserError)(f"{what} was refused ({status}): {told}")

    def _unknown(self, status: int, place: str) -> str:
        return f"{self.host} does not know who asks ({status}{f', it sends to {place}' if place else ''}). " + (
            f"{self.credentials} is not accepted: it may have expired, be for another audience or another server. "
            f"Make a new token with kubectl create token ACCOUNT --audience={AUDIENCE} and give its file as "
            f"--token-file, or copy the cookie of a browser that is logged in into {COOKIE}"
            if self.credentials
            else f"Nothing was sent to say so: give --token-file, or set {COOKIE}"
        )


def told_by(error: ApiException) -> str:
    """Returns the API's own words in one line."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        body = json.loads(error.body)
        return " ".join(str(body.get("message") or body.get("error") or body).split())
    return " ".join(str(error.reason or error.body or "no reason given").split())


def connect(host: str, namespace: str, token_file: Path | None, ca_file: Path | None = None) -> Connection:
    """Connects and makes sure that Kubeflow Pipelines answers.

    Args:
        host: Address of the API, such as https://kubeflow.example.com/pipeline; empty for the cluster around this pod,
            or the one of the kubeconfig.
        namespace: The user's namespace; empty on a single-user installation.
        token_file: File with a token, read anew for every request.
        ca_file: Certificates that the API's own has to come from; None takes those that the environment names, or the
            public ones.

    Returns:
        The connection.

    Raises:
        UserError: If nothing, or something else, answers, or the namespace is missing.
    """
    credentials, sent, cookie = None, "", os.environ.get(COOKIE)
    mounted = os.environ.get(KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH)
    if token_file and not token_file.is_file():
        raise UserError(f"--token-file {token_file}: there is no such file")
    if token_file or (not cookie and Path(mounted).is_file()):
        credentials, sent = ServiceAccountTokenVolumeCredentials(token_file or mounted), str(token_file or mounted)
    elif cookie:
        sent = f"the cookie in {COOKIE}"
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        # The client's `namespace` is that of the installation; the user's goes with each request that needs it.
        client = _Client(host=host or None, credentials=credentials, cookies=cookie, ssl_ca_cert=certificates(ca_file))
    connection = Connection(client, client._existing_config.host, namespace, sent)
    with connection.doing("looking for Kubeflow Pipelines"):
        try:
            health = client._healthz_api.healthz_service_get_healthz()
        except ApiException as error:
            if error.status == 404:
                raise UserError(_nothing_there(connection.host)) from error
            raise
    if "json" not in client._healthz_api.api_client.last_response.getheader("content-type", ""):
        raise UserError(_nothing_there(connection.host))
    if health.multi_user and not namespace:
        raise UserError(f"{connection.host} has many users: say with --namespace whose profile the run belongs to")
    return connection


def _nothing_there(host: str) -> str:
    return (
        f"Kubeflow Pipelines does not answer at {host}: /apis/v2beta1/healthz is not there. "
        "Behind Kubeflow's dashboard the address ends in /pipeline"
    )
