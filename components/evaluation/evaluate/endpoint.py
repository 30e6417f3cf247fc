"""Client of an OpenAI-compatible server that sends many requests concurrently."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

from llm_finetune.components.evaluation.evaluate.generation import Answer
from llm_finetune.components.evaluation.evaluate.rows import Prompt
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.progress import Progress

if TYPE_CHECKING:
    from openai import OpenAI

Item = TypeVar("Item")
Result = TypeVar("Result")
Choice = TypeVar("Choice")
Choice_co = TypeVar("Choice_co", covariant=True)

RETRIES = 2


class Completion(Protocol[Choice_co]):
    """A completion of the OpenAI client, of either route."""

    @property
    def choices(self) -> Sequence[Choice_co]:
        """The generated choices."""


class EndpointError(Exception):
    """A request failed; the message names the server, what happened, and what to check."""


class Endpoint:
    """A model behind an OpenAI-compatible API.

    Attributes:
        model: Name of the model there.
    """

    def __init__(self, url: str, model: str, key_variable: str, timeout: float, concurrency: int) -> None:
        """Creates the client; no request is sent.

        Args:
            url: Base URL, such as `https://host/v1`.
            model: Name of the model.
            key_variable: Environment variable with the API key, mounted from a secret; optional for servers without
                authentication.
            timeout: Seconds until a request times out; it is then retried twice.
            concurrency: Maximum number of concurrent requests.

        Raises:
            UserError: If the client is not installed.
        """
        try:
            import openai
        except ImportError:
            raise UserError(f"{url} needs the OpenAI client: install the extra llm-finetune[judge]") from None
        self.model, self._url, self._key_variable = model, url, key_variable
        self._timeout, self._concurrency = timeout, concurrency
        key = os.environ.get(key_variable) or "none"
        self._client: OpenAI = openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=RETRIES)

    def map(self, items: Sequence[Item], send: Callable[["OpenAI", Item], Result], label: str) -> list[Result]:
        """Sends one request per item.

        Args:
            items: The items.
            send: Sends the request for an item; called from several threads.
            label: Label of the progress lines.

        Returns:
            The results in the order of the items.

        Raises:
            EndpointError: At the first request that fails after its retries; requests not yet sent are cancelled.
        """
        progress = Progress(label, len(items), "requests")
        results = []
        with ThreadPoolExecutor(self._concurrency) as threads:
            futures = [threads.submit(self._send, send, item) for item in items]
            try:
                for future in futures:
                    results.append(future.result())
                    progress.update(len(results))
            finally:
                threads.shutdown(wait=False, cancel_futures=True)
        return results

    def first_choice(self, completion: Completion[Choice]) -> Choice:
        """Returns the first choice of a completion.

        Args:
            completion: What the client returned; for a response that is not JSON this is its text.

        Raises:
            EndpointError: If the response has no choices.
        """
        if not getattr(completion, "choices", None):
            raise EndpointError(f"{self._url} sent a response without choices: {str(completion)[:200]!r}")
        return completion.choices[0]

    def _send(self, send: Callable[["OpenAI", Item], Result], item: Item) -> Result:
        import openai

        try:
            return send(self._client, item)
        except openai.APITimeoutError:
            raise EndpointError(
                f"{self._url} did not answer within {self._timeout:g} s, {RETRIES + 1} times in a row (request_timeout)"
            ) from None
        except openai.APIConnectionError as error:
            raise EndpointError(f"{self._url} cannot be reached: {error.__cause__ or error}") from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise EndpointError(
                f"{self._url} refused the key: HTTP {error.status_code}. It is read from the environment variable "
                f"{self._key_variable}, which is {'set' if os.environ.get(self._key_variable) else 'not set'}"
            ) from None
        except openai.APIStatusError as error:
            raise EndpointError(
                f"{self._url} answered HTTP {error.status_code} for the model {self.model!r}: {str(error)[:300]}"
            ) from None
        except openai.OpenAIError as error:
            raise EndpointError(f"{self._url} sent a response that cannot be read: {str(error)[:300]}") from None


def query_served_model(endpoint: Endpoint, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Answer]:
    """Lets a deployed model answer prompts with greedy decoding.

    The prompts are sent as token ids to vLLM's completions route, so that the server applies no chat template.

    Args:
        endpoint: The server.
        prompts: The prompts.
        max_new_tokens: Maximum number of tokens of an answer.

    Returns:
        One answer per prompt.

    Raises:
        EndpointError: If the server cannot be reached, refuses a request, or times out.
    """

    def send(client: "OpenAI", prompt: Prompt) -> Answer:
        completion = client.completions.create(
            model=endpoint.model, prompt=prompt.input_ids, max_tokens=max_new_tokens, temperature=0.0
        )
        choice = endpoint.first_choice(completion)
        tokens = completion.usage.completion_tokens if completion.usage else 0
        return Answer(choice.text, tokens, choice.finish_reason == "stop")

    return endpoint.map(prompts, send, "answers (served)")
