import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from llm_finetune.components.serving.vllm_serve import smoke


class Model(http.server.BaseHTTPRequestHandler):
    """An OpenAI-like server whose answers each test sets."""

    protocol_version = "HTTP/1.1"
    behaviour: dict[str, Any] = {}  # noqa: RUF012
    requests: list[dict[str, Any]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self._send(200, json.dumps({"object": "list", "data": [{"id": "tuned", "root": "/models/2"}]}).encode())

    def do_POST(self) -> None:
        type(self).requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if status := self.behaviour.get("status"):
            self._send(status, self.behaviour["body"])
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        chunked = self.behaviour.get("chunked", True)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        for pause, event in self.behaviour["events"]:
            time.sleep(pause)
            data = f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
            try:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)
            except BrokenPipeError:
                return  # The client has given up.
        if chunked and not self.behaviour.get("breaks"):
            self.wfile.write(b"0\r\n\r\n")
        if self.behaviour.get("breaks"):
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def piece(text: str | None = None, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text} if text is not None else {}, "finish_reason": finish}]}


ANSWER = [
    (0.0, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}),
    (0.2, piece("Par")),
    (0.2, piece("is", "stop")),
    (0.0, {"choices": [], "usage": {"completion_tokens": 2}}),
    (0.0, "[DONE]"),
]
QUESTION = [{"role": "user", "content": "Capital of France?"}]


@pytest.fixture
def url() -> Iterator[str]:
    Model.behaviour, Model.requests = {"events": ANSWER}, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("chunked", [True, False])
def test_answer_is_read_as_it_streams(url: str, chunked: bool) -> None:
    Model.behaviour = {"events": ANSWER, "chunked": chunked}
    [answer] = smoke.smoke_test(url, "tuned", [QUESTION], max_tokens=16, timeout=10)
    assert (answer.prompt, answer.text, answer.finish_reason, answer.tokens) == (
        "Capital of France?",
        "Paris",
        "stop",
        2,
    )
    # The empty opening piece is no token; the first one comes after one pause, the last after two.
    assert 0.19 < answer.first_token_seconds < 0.35
    assert answer.seconds > answer.first_token_seconds + 0.15
    [request] = Model.requests
    assert request["messages"] == QUESTION and request["temperature"] == 0 and request["max_tokens"] == 16


def test_stream_without_done_mark_is_complete(url: str) -> None:
    Model.behaviour = {"events": ANSWER[:3]}
    assert smoke.ask(url, "tuned", QUESTION, 16, 10).text == "Paris"


def test_model_that_is_not_listed_is_named(url: str) -> None:
    with pytest.raises(smoke.SmokeFailure, match="lists tuned, not 'other'"):
        smoke.smoke_test(url, "other", [QUESTION], 16, 10)
    assert Model.requests == []


def test_model_of_another_folder_is_not_taken_for_ours(url: str) -> None:
    smoke.smoke_test(url, "tuned", [QUESTION], 16, 10, root="/models/2")
    with pytest.raises(smoke.SmokeFailure, match="'tuned' was loaded from /models/2, not from /models/1"):
        smoke.smoke_test(url, "tuned", [QUESTION], 16, 10, root="/models/1")


def test_a_conversation_is_told_whole(url: str) -> None:
    asked = [{"role": "system", "content": "Parse"}, {"role": "user", "content": "1 Elm St"}]
    assert smoke.ask(url, "tuned", asked, 16, 10).prompt == "system: Parse\n\nuser: 1 Elm St"
    assert Model.requests[-1]["messages"] == asked


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ({"events": [(0, piece("", "stop"))]}, "empty answer to 'Capital of France\\?' \\(finish_reason stop\\)"),
        ({"events": [(0, piece(" \n", "stop"))]}, "empty answer"),
        (
            {"events": [(0, piece(" ", "length")), (0, {"choices": [], "usage": {"completion_tokens": 16}})]},
            r"generated 16 tokens without text for .* \(finish_reason length\)",
        ),
        ({"events": ANSWER[:2], "breaks": True}, "broke off"),
        ({"events": ANSWER[:2]}, "without a finish_reason"),
        ({"events": [(0, {"error": {"message": "engine dead"}})]}, "engine dead"),
        ({"events": [(0, "<html>")]}, "not JSON: <html>"),
        ({"status": 403, "body": b"RBAC: access denied"}, "answered 403: RBAC: access denied"),
        ({"status": 400, "body": b'{"message": "no chat template defined"}'}, "needs a chat template"),
    ],
)
def test_bad_answers_are_told_apart(url: str, behaviour: dict[str, Any], message: str) -> None:
    Model.behaviour = behaviour
    with pytest.raises(smoke.SmokeFailure, match=message) as failure:
        smoke.ask(url, "tuned", QUESTION, 16, 10)
    assert failure.value.status == behaviour.get("status", 0)


def test_answer_that_takes_too_long_fails(url: str) -> None:
    Model.behaviour = {"events": [(0.2, piece("a"))] * 20}
    with pytest.raises(smoke.SmokeFailure, match=r"within 0\.5 s"):
        smoke.ask(url, "tuned", QUESTION, 16, 0.5)


def test_unreachable_server_is_a_clear_failure() -> None:
    with pytest.raises(smoke.SmokeFailure, match="got no answer"):
        smoke.models("http://127.0.0.1:1/v1")
    assert not smoke.is_healthy("http://127.0.0.1:1/health")
