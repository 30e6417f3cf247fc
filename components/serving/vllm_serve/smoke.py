"""Sends chat requests to a served model over HTTP and measures the streamed answers."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import urllib3

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.questions import Messages


class SmokeFailure(UserError):
    """The deployed model failed a test prompt.

    Attributes:
        status: HTTP status of the failed request, or 0.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        """Stores the HTTP status."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt.

    Attributes:
        prompt: The user message; for several messages, all of them with their roles.
        text: The generated text.
        finish_reason: `stop` at the end-of-turn token, `length` at the token limit.
        first_token_seconds: Time from the request to the first text.
        seconds: Time from the request to the end of the answer.
        tokens: Generated tokens as counted by the server; 0 if it does not report them.
    """

    prompt: str
    text: str
    finish_reason: str
    first_token_seconds: float
    seconds: float
    tokens: int

    def as_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return asdict(self)


def smoke_test(
    base_url: str,
    model: str,
    prompts: Sequence[Messages],
    max_tokens: int,
    timeout: float,
    check_list: bool = True,
    root: str = "",
) -> list[Answer]:
    """Checks that a server lists the model and answers every prompt.

    Args:
        base_url: Root of the OpenAI-compatible API, ending in `/v1`.
        model: Name of the served model.
        prompts: Conversations, each a list of role and content.
        max_tokens: Maximum number of tokens per answer.
        timeout: Maximum seconds per answer.
        check_list: Whether `/models` must list the model (`transformers serve` lists its download cache instead).
        root: Folder from which the model must have been loaded; empty for any.

    Returns:
        One answer per prompt.

    Raises:
        SmokeFailure: If the model is not listed or was loaded from another folder, or a request or an answer fails.
    """
    if check_list:
        roots = model_roots(base_url, timeout)
        if model not in roots:
            raise SmokeFailure(f"{base_url}/models lists {', '.join(roots) or 'no model'}, not {model!r}")
        if root and roots[model] != root:
            raise SmokeFailure(
                f"{base_url}/models reports that {model!r} was loaded from {roots[model]}, not from {root}"
            )
    return [ask(base_url, model, messages, max_tokens, timeout) for messages in prompts]


def models(base_url: str, timeout: float = 30.0) -> list[str]:
    """Returns the names of the models that a server lists."""
    return list(model_roots(base_url, timeout))


def model_roots(base_url: str, timeout: float = 30.0) -> dict[str, str]:
    """Returns the names of the listed models and the path that each was loaded from, empty if not reported."""
    body = _request("GET", f"{base_url}/models", timeout=timeout).data
    try:
        return {str(entry["id"]): str(entry.get("root") or "") for entry in json.loads(body)["data"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SmokeFailure(f"{base_url}/models is not an OpenAI model list: {_excerpt(body)}") from None


def ask(base_url: str, model: str, messages: Messages, max_tokens: int, timeout: float) -> Answer:
    """Sends one chat request at temperature 0 and reads the streamed answer.

    Args:
        base_url: Root of the OpenAI-compatible API, ending in `/v1`.
        model: Name of the served model.
        messages: The conversation.
        max_tokens: Maximum number of tokens of the answer.
        timeout: Maximum seconds for the whole answer.

    Returns:
        The answer with its times.

    Raises:
        SmokeFailure: If the request fails, or the answer is empty or incomplete.
    """
    prompt, url = _as_text(messages), f"{base_url}/chat/completions"
    request = chat_request(model, messages, max_tokens) | {"stream": True, "stream_options": {"include_usage": True}}
    started, first, pieces, finish_reason, tokens = time.monotonic(), 0.0, list[str](), "", 0
    response = _request("POST", url, body=request, timeout=timeout)
    try:
        for event in _events(response):
            if time.monotonic() - started > timeout:
                raise SmokeFailure(f"{model} did not finish its answer to {prompt!r} within {timeout:g} s")
            if "error" in event:
                raise SmokeFailure(f"{model} failed on {prompt!r}: {_excerpt(json.dumps(event['error']))}")
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            for choice in event.get("choices", []):
                finish_reason = choice.get("finish_reason") or finish_reason
                if piece := (choice.get("delta") or {}).get("content"):
                    first = first or time.monotonic() - started
                    pieces.append(piece)
    except urllib3.exceptions.HTTPError as error:
        raise SmokeFailure(f"the answer to {prompt!r} broke off after {len(pieces)} pieces: {error}") from None
    finally:
        response.close()
    text = "".join(pieces)
    if not text.strip() and finish_reason == "length":
        raise SmokeFailure(
            f"{model} generated {tokens or max_tokens} tokens without text for {prompt!r} (finish_reason length). "
            "Raise answer_tokens, or check what the model generates first: white space, special tokens, or reasoning "
            "that the server does not return"
        )
    if not text.strip():
        raise SmokeFailure(
            f"{model} returned an empty answer to {prompt!r} (finish_reason {finish_reason or 'missing'}). "
            "Its chat template may differ from the one used in training"
        )
    if not finish_reason:
        raise SmokeFailure(f"the answer to {prompt!r} broke off without a finish_reason: {_excerpt(text.encode())}")
    return Answer(prompt, text, finish_reason, round(first, 4), round(time.monotonic() - started, 4), tokens)


def _as_text(messages: Messages) -> str:
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def chat_request(model: str, messages: Messages, max_tokens: int) -> dict[str, object]:
    """Returns the body of a chat request with greedy decoding."""
    return {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}


def is_healthy(url: str, timeout: float = 2.0) -> bool:
    """Returns whether a health endpoint answers 200."""
    try:
        return urllib3.request("GET", url, timeout=timeout, retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def _request(method: str, url: str, timeout: float, body: dict[str, object] | None = None) -> urllib3.BaseHTTPResponse:
    streamed = body is not None
    try:
        limits = urllib3.Timeout(connect=10, read=timeout)
        response = urllib3.request(method, url, json=body, timeout=limits, retries=False, preload_content=not streamed)
    except urllib3.exceptions.HTTPError as error:
        raise SmokeFailure(f"{method} {url} got no answer: {error}") from None
    if response.status != 200:
        shown, status = _excerpt(response.read() if streamed else response.data), response.status
        hint = ". The model folder needs a chat template" if status == 400 and "chat template" in shown else ""
        raise SmokeFailure(f"{method} {url} answered {status}: {shown}{hint}", status)
    return response


def _events(response: urllib3.BaseHTTPResponse) -> Iterator[dict[str, Any]]:
    """Yields the JSON events of a server-sent event stream, until `[DONE]` or the end of the stream."""
    rest = b""
    # Chunks as they arrive: a read by size waits for a full buffer and delays the first token.
    for chunk in response.stream() if response.chunked else iter(lambda: response.read1(65536), b""):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            data = line.strip().removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
            if data == b"[DONE]":
                return
            if data:
                try:
                    yield json.loads(data)
                except ValueError:
                    raise SmokeFailure(f"the server streamed an event that is not JSON: {_excerpt(data)}") from None


def _excerpt(body: bytes | str) -> str:
    text = body.decode(errors="replace") if isinstance(body, bytes) else body
    return text.strip()[:600] or "(empty)"
