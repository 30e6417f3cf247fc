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

COOKIE = "KUBEFLOW_SESSION_COOKIE"
AUDIENCE = "pipelines.kubeflow.org"
PAUSE_SECONDS = 0.5  # before the second try; doubled for each further one
GATEWAY_TROUBLE = (429, 502, 503, 504)


class _Client(kfp.Client):
    """The kfp client, made to outlive a gateway's hiccup and not to follow a redirect to a login page."""

    def _load_config(self, *args: Any, **kwargs: Any) -> Configuration:
        config = super()._load_config(*args, **kwargs)
        # Only requests that change nothing are repeated here; see `Connection.create`.
        config.retries = urllib3.Retry(
            total=6, redirect=False, status_forcelist=GATEWAY_TROUBLE, backoff_factor=PAUSE_SECONDS,
            raise_on_status=False,
        )  # fmt: skip
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
            UserError: If it is refused or the API is out of reach.
        """
        try:
            yield
        except ApiException as error:
            raise UserError(self._refusal(what, error)) from error
        except urllib3.exceptions.HTTPError as error:
            raise UserError(
                f"{self.host} is out of reach ({_innermost(error)}). Check --host; for a cluster without an ingress: "
                "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80, then --host http://localhost:8080"
            ) from error

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
                if error.status not in GATEWAY_TROUBLE:
                    raise
                return find() or make()

    def _refusal(self, what: str, error: ApiException) -> str:
        status, told = int(error.status or 0), told_by(error)
        if status == 401 or 300 <= status < 400:
            place = (error.headers or {}).get("Location", "")
            return f"{self.host} does not know who asks ({status}{f', it sends to {place}' if place else ''}). " + (
                f"{self.credentials} is not accepted: it may have expired, be for another audience or another server. "
                f"Make a new token with kubectl create token ACCOUNT --audience={AUDIENCE} and give its file as "
                f"--token-file, or copy the cookie of a browser that is logged in into {COOKIE}"
                if self.credentials
                else f"Nothing was sent to say so: give --token-file, or set {COOKIE}"
            )
        if status == 403:
            where = f"namespace {self.namespace}" if self.namespace else "this installation"
            return (
                f"{what} was refused (403): {told}. Either there is no {where}, or the account has no rights there: "
                "ask for kubeflow-edit in your profile, or choose another --namespace"
            )
        if status in GATEWAY_TROUBLE:
            return f"{what}: {self.host} answers {status} again and again ({told}). Try again later"
        return f"{what} was refused ({status}): {told}"


def told_by(error: ApiException) -> str:
    """Returns the API's own words in one line."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        body = json.loads(error.body)
        return " ".join(str(body.get("message") or body.get("error") or body).split())
    return " ".join(str(error.reason or error.body or "no reason given").split())


def connect(host: str, namespace: str, token_file: Path | None) -> Connection:
    """Connects and makes sure that Kubeflow Pipelines answers.

    Args:
        host: Address of the API, such as https://kubeflow.example.com/pipeline; empty for the cluster around this pod,
            or the one of the kubeconfig.
        namespace: The user's namespace; empty on a single-user installation.
        token_file: File with a token, read anew for every request.

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
        client = _Client(host=host or None, credentials=credentials, cookies=cookie)
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


def _innermost(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    return _innermost(reason) if isinstance(reason, BaseException) else str(error).rpartition(": ")[2]
