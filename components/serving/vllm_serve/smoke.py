"""Asks a served model real questions over HTTP, streamed, and times the answers."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import urllib3

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.questions import Messages


class SmokeFailure(UserError):
    """The deployed model did not answer as it must.

    Attributes:
        status: HTTP status of the refused request, or 0 where there was none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        """Keeps the HTTP status beside the message."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """One prompt's answer.

    Attributes:
        prompt: The user's message; of a request with several messages all of them, each after its role.
        text: What the model said.
        finish_reason: `stop` when the model ended by itself, `length` when it was cut at the token limit.
        first_token_seconds: From sending the request to the first piece of text.
        seconds: From sending the request to the end of the answer.
        tokens: Tokens of the answer as the server counted them; 0 if it did not say.
    """

    prompt: str
    text: str
    finish_reason: str
    first_token_seconds: float
    seconds: float
    tokens: int

    def as_json(self) -> dict[str, Any]:
        """Returns the fields as plain JSON values."""
        return asdict(self)


def smoke_test(
    base_url: str,
    model: str,
    prompts: Sequence[Messages],
    max_tokens: int,
    timeout: float,
    listed: bool = True,
    root: str = "",
) -> list[Answer]:
    """Checks that a server lists the model and answers every prompt.

    Args:
        base_url: The OpenAI-compatible root, ending in `/v1`.
        model: The name under which the model is served.
        prompts: Conversations, each a list of role and content.
        max_tokens: Most tokens of an answer.
        timeout: Seconds that one answer may take in all.
        listed: Whether `/models` must name the model (`transformers serve` lists its download cache instead).
        root: Folder that the listed model must have been loaded from; empty where the server may have any.

    Returns:
        One answer per prompt.

    Raises:
        SmokeFailure: If the model is not listed or another one has its name, a request is refused, or an answer is
            empty or does not end.
    """
    if listed:
        roots = model_roots(base_url, timeout)
        if model not in roots:
            raise SmokeFailure(f"{base_url}/models lists {', '.join(roots) or 'no model'}, not {model!r}")
        if root and roots[model] != root:
            raise SmokeFailure(f"{base_url}/models says that {model!r} was loaded from {roots[model]}, not from {root}")
    return [ask(base_url, model, messages, max_tokens, timeout) for messages in prompts]


def models(base_url: str, timeout: float = 30.0) -> list[str]:
    """Returns the names of the models that a server offers."""
    return list(model_roots(base_url, timeout))


def model_roots(base_url: str, timeout: float = 30.0) -> dict[str, str]:
    """Returns where each model that a server offers was loaded from, by name; empty where it does not say."""
    body = _request("GET", f"{base_url}/models", timeout=timeout).data
    try:
        return {str(entry["id"]): str(entry.get("root") or "") for entry in json.loads(body)["data"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SmokeFailure(f"{base_url}/models is no OpenAI model list: {_shown(body)}") from None


def ask(base_url: str, model: str, messages: Messages, max_tokens: int, timeout: float) -> Answer:
    """Sends one chat request at temperature 0 and reads the streamed answer.

    Args:
        base_url: The OpenAI-compatible root, ending in `/v1`.
        model: The served model's name.
        messages: The conversation.
        max_tokens: Most tokens of the answer.
        timeout: Seconds for the whole answer.

    Returns:
        The answer with its times.

    Raises:
        SmokeFailure: If the request is refused or the answer is empty or breaks off.
    """
    prompt, url = _as_text(messages), f"{base_url}/chat/completions"
    request = chat_request(model, messages, max_tokens) | {"stream": True, "stream_options": {"include_usage": True}}
    started, first, pieces, finish_reason, tokens = time.monotonic(), 0.0, [], "", 0
    response = _request("POST", url, body=request, timeout=timeout)
    try:
        for event in _events(response):
            if time.monotonic() - started > timeout:
                raise SmokeFailure(f"{model} did not finish its answer to {prompt!r} within {timeout:g} s")
            if "error" in event:
                raise SmokeFailure(f"{model} failed on {prompt!r}: {_shown(json.dumps(event['error']))}")
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
            f"{model} wrote {tokens or max_tokens} tokens to {prompt!r}, and none of them is text (finish_reason "
            "length): it did not come to an answer within answer_tokens. Raise answer_tokens, or look at what the "
            "model writes first: white space, special tokens, or thoughts that the server holds back"
        )
    if not text.strip():
        raise SmokeFailure(
            f"{model} gave an empty answer to {prompt!r} (finish_reason {finish_reason or 'missing'}). "
            "The model ends at once: its chat template may differ from the one it was trained with"
        )
    if not finish_reason:
        raise SmokeFailure(f"the answer to {prompt!r} broke off without a finish_reason: {_shown(text.encode())}")
    return Answer(prompt, text, finish_reason, round(first, 4), round(time.monotonic() - started, 4), tokens)


def _as_text(messages: Messages) -> str:
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def chat_request(model: str, messages: Messages, max_tokens: int) -> dict[str, Any]:
    """Returns the body of a chat request that gives the same answer each time."""
    return {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}


def is_healthy(url: str, timeout: float = 2.0) -> bool:
    """Tells whether a health address answers 200."""
    try:
        return urllib3.request("GET", url, timeout=timeout, retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def _request(method: str, url: str, timeout: float, body: Any = None) -> urllib3.BaseHTTPResponse:
    streamed = body is not None
    try:
        limits = urllib3.Timeout(connect=10, read=timeout)
        response = urllib3.request(method, url, json=body, timeout=limits, retries=False, preload_content=not streamed)
    except urllib3.exceptions.HTTPError as error:
        raise SmokeFailure(f"{method} {url} got no answer: {error}") from None
    if response.status != 200:
        shown, status = _shown(response.read() if streamed else response.data), response.status
        hint = ". The model folder needs a chat template" if status == 400 and "chat template" in shown else ""
        raise SmokeFailure(f"{method} {url} answered {status}: {shown}{hint}", status)
    return response


def _events(response: urllib3.BaseHTTPResponse) -> Iterator[dict[str, Any]]:
    """Yields the JSON events of a server-sent stream; the end of the stream ends it, with or without `[DONE]`."""
    rest = b""
    # Pieces as they arrive: reading by size would wait for a full buffer and spoil the first token's time.
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
                    raise SmokeFailure(f"the server streamed something that is not JSON: {_shown(data)}") from None


def _shown(body: bytes | str) -> str:
    text = body.decode(errors="replace") if isinstance(body, bytes) else body
    return text.strip()[:600] or "(empty)"
