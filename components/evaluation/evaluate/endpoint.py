"""Any OpenAI-compatible server, asked many things at once."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from llm_finetune.components.evaluation.evaluate.generation import Answer
from llm_finetune.components.evaluation.evaluate.rows import Prompt
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.progress import Progress

if TYPE_CHECKING:
    from openai import OpenAI

Asked = TypeVar("Asked")
Told = TypeVar("Told")

RETRIES = 2


class EndpointError(Exception):
    """A server did not answer as it should; the message names it, what happened, and what to look at."""


class Endpoint:
    """A model behind an OpenAI-compatible address.

    Attributes:
        model: Name of the model there.
    """

    def __init__(self, address: str, model: str, key_variable: str, timeout: float, at_once: int) -> None:
        """Describes the server; nothing is sent yet.

        Args:
            address: Base address, such as `https://host/v1`.
            model: Name of the model.
            key_variable: Environment variable with the key, mounted from a secret; a server without keys needs none.
            timeout: Seconds that an answer may take; each request is tried three times.
            at_once: Requests in flight.

        Raises:
            UserError: If the client is not installed.
        """
        try:
            import openai
        except ImportError:
            raise UserError(f"{address} needs the OpenAI client: install the extra llm-finetune[judge]") from None
        self.model, self._address, self._key_variable = model, address, key_variable
        self._timeout, self._at_once = timeout, at_once
        key = os.environ.get(key_variable) or "none"
        self._client: OpenAI = openai.OpenAI(base_url=address, api_key=key, timeout=timeout, max_retries=RETRIES)

    def each(self, items: Sequence[Asked], ask: Callable[["OpenAI", Asked], Told], label: str) -> list[Told]:
        """Asks something for each item.

        Args:
            items: What to ask about.
            ask: Sends the request; called from several threads.
            label: Name for the progress lines.

        Returns:
            The answers in order.

        Raises:
            EndpointError: At the first request that fails for good; those still waiting are not sent.
        """
        progress = Progress(label, len(items), "requests")
        told = []
        with ThreadPoolExecutor(self._at_once) as threads:
            coming = [threads.submit(self._guarded, ask, item) for item in items]
            try:
                for future in coming:
                    told.append(future.result())
                    progress.update(len(told))
            finally:
                threads.shutdown(wait=False, cancel_futures=True)
        return told

    def choice(self, reply: Any) -> Any:
        """Returns the first choice of a reply.

        Args:
            reply: What the client returned; of a page that is no JSON, its text.

        Raises:
            EndpointError: If there is none.
        """
        if not getattr(reply, "choices", None):
            raise EndpointError(f"{self._address} sent a reply without an answer: {str(reply)[:200]!r}")
        return reply.choices[0]

    def _guarded(self, ask: Callable[["OpenAI", Asked], Told], item: Asked) -> Told:
        import openai

        try:
            return ask(self._client, item)
        except openai.APITimeoutError:
            raise EndpointError(
                f"{self._address} did not answer within {self._timeout:g} s, {RETRIES + 1} times in a row "
                "(request_timeout)"
            ) from None
        except openai.APIConnectionError as error:
            raise EndpointError(f"{self._address} cannot be reached: {error.__cause__ or error}") from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise EndpointError(
                f"{self._address} refused the key: HTTP {error.status_code}. It is read from the environment variable "
                f"{self._key_variable}, which is {'set' if os.environ.get(self._key_variable) else 'not set'}"
            ) from None
        except openai.APIStatusError as error:
            raise EndpointError(
                f"{self._address} answered HTTP {error.status_code} for the model {self.model!r}: {str(error)[:300]}"
            ) from None
        except openai.OpenAIError as error:
            raise EndpointError(f"{self._address} answered what cannot be read: {str(error)[:300]}") from None


def served_answers(endpoint: Endpoint, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Answer]:
    """Lets a deployed model answer prompts greedily.

    The prompts are sent as token ids to the completions route of vLLM, so that the server adds and parses nothing.

    Args:
        endpoint: The server.
        prompts: What to answer.
        max_new_tokens: Most tokens of an answer.

    Returns:
        An answer per prompt.

    Raises:
        EndpointError: If the server cannot be reached, refuses, or takes too long.
    """

    def ask(client: Any, prompt: Prompt) -> Answer:
        reply = client.completions.create(
            model=endpoint.model, prompt=prompt.input_ids, max_tokens=max_new_tokens, temperature=0.0
        )
        choice = endpoint.choice(reply)
        tokens = reply.usage.completion_tokens if reply.usage else 0
        return Answer(choice.text, tokens, choice.finish_reason == "stop")

    return endpoint.each(prompts, ask, "answers (served)")
