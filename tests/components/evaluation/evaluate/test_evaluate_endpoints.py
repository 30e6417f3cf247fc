"""Judge and served model against a server on this machine that speaks the OpenAI protocol."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_finetune.components.evaluation.evaluate import judge
from llm_finetune.components.evaluation.evaluate.endpoint import Endpoint, EndpointError
from llm_finetune.components.evaluation.evaluate.judge import Pair
from llm_finetune.components.evaluation.quality_gate import step as gate

pytest.importorskip("openai")


@pytest.fixture
def server():
    """Starts a server that answers with `server.reply(path, body, headers)`: a status and an object or a text."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.seen.append(body)
            status, content = self.server.reply(self.path, body, self.headers)
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(content, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.seen, server.url = [], f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def chat(text):
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


def prefers(first_wins):
    """A judge that decides from the two answers shown."""

    def reply(path, body, headers):
        assert path == "/v1/chat/completions"
        parts = dict(re.findall(r"\[(Assistant .)\]\n(.*?)\n\[End", body["messages"][1]["content"], re.DOTALL))
        return 200, chat(f"Because. {first_wins(parts['Assistant A'], parts['Assistant B'])}")

    return reply


def endpoint(server, timeout=5.0):
    return Endpoint(server.url, "m", "JUDGE_API_KEY", timeout, 4)


PAIRS = [Pair("say hi", "hi", "hi", "no"), Pair("say ho", "ho", "no", "ho"), Pair("say x", "x", "same", "same")]


def test_a_judge_sees_both_orders_and_only_what_holds_in_both_counts(server):
    server.reply = prefers(lambda a, b: "[[C]]" if a == b else "[[A]]" if b == "no" else "[[B]]")
    verdicts = judge.judge_pairs(endpoint(server), PAIRS)
    assert [verdict.outcome for verdict in verdicts] == ["win", "loss", "tie"]
    found = judge.judge_metrics(verdicts, 0)
    assert (found["judge_win_rate"], found["judge_wins"], found["judge_ties"], found["judge_losses"]) == (0.5, 1, 1, 1)
    assert (found["judge_agreement"], found["judge_unreadable"]) == (1.0, 0)
    assert (found["judge_prompt_tokens"], found["judge_completion_tokens"]) == (600, 42)
    assert len(server.seen) == 6
    assert found["judge_win_rate_ci_low"] <= 0.5 <= found["judge_win_rate_ci_high"]


def test_a_judge_that_always_likes_the_first_answer_gives_only_ties(server):
    server.reply = prefers(lambda a, b: "[[A]]")
    found = judge.judge_metrics(judge.judge_pairs(endpoint(server), PAIRS), 0)
    assert (found["judge_win_rate"], found["judge_ties"], found["judge_agreement"]) == (0.5, 3, 0.0)


def test_replies_without_a_verdict_are_counted_and_none_at_all_is_an_error(server):
    server.reply = prefers(lambda a, b: "[[A]]" if a == "hi" else "hm")
    found = judge.judge_metrics(judge.judge_pairs(endpoint(server), PAIRS), 0)
    assert (found["judge_unreadable"], found["judge_ties"]) == (5, 3)
    server.reply = prefers(lambda a, b: "hm")
    with pytest.raises(EndpointError, match="none of the judge's 6 replies ends with a verdict"):
        judge.judge_pairs(endpoint(server), PAIRS)


def refuse(path, body, headers):
    ok = headers["Authorization"] == "Bearer right"
    return (200, chat("[[A]]")) if ok else (401, {"error": {"message": "bad key"}})


def test_the_key_comes_from_the_environment_and_is_never_shown(server, monkeypatch):
    server.reply = refuse
    monkeypatch.setenv("JUDGE_API_KEY", "wrong-secret")
    with pytest.raises(EndpointError, match=r"refused the key: HTTP 401.*JUDGE_API_KEY, which is set") as error:
        judge.judge_pairs(endpoint(server), PAIRS)
    assert "wrong-secret" not in str(error.value)
    monkeypatch.setenv("JUDGE_API_KEY", "right")
    assert len(judge.judge_pairs(endpoint(server), PAIRS)) == 3


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (lambda *request: (404, {"error": {"message": "no such model"}}), "answered HTTP 404 for the model 'm'"),
        (lambda *request: (200, "<html>portal</html>"), "sent a response without choices: '<html>portal"),
        (lambda *request: (200, {"choices": []}), "sent a response without choices"),
    ],
)
def test_what_a_server_does_wrong_is_named(server, reply, message):
    server.reply = reply
    with pytest.raises(EndpointError, match=re.escape(message)):
        judge.judge_pairs(endpoint(server), PAIRS[:1])


def test_a_judge_that_times_out_is_named_and_keeps_the_gate_closed(server, evaluated, tmp_path):
    server.reply = lambda *request: (time.sleep(1.0), (200, chat("[[A]]")))[1]
    evaluation = evaluated(generate_samples=1, max_new_tokens=1, judge_endpoint=server.url, judge_model="m",
                           request_timeout=0.1)  # fmt: skip
    assert evaluation.problems == [
        f"the judge gave no verdicts: {server.url} did not answer within 0.1 s, 3 times in a row (request_timeout)"
    ]
    assert "judge_win_rate" not in evaluation.metrics
    (tmp_path / "report").write_text(evaluation.report())
    for rules in ("", "samples_used > 0", "judge_win_rate > 0"):
        opened, reason = gate.quality_gate(tmp_path / "report", tmp_path / "gate.md", gate.Settings(rules=rules))
        assert opened is False and "did not answer within 0.1 s" in reason
    assert "Not measured, so the gate stays closed" in (tmp_path / "page.html").read_text()


def test_a_server_that_is_not_there_is_named(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(EndpointError, match=f"{server.url} cannot be reached: .*refused"):
        judge.judge_pairs(endpoint(server), PAIRS[:1])


def test_a_served_model_answers_the_same_prompts_and_is_judged_too(server, inputs, evaluated):
    base = AutoModelForCausalLM.from_pretrained(inputs["model_config"], dtype=torch.float32)
    served = PeftModel.from_pretrained(base, inputs["ft_result"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(inputs["ft_result"])

    def complete(body):
        prompt = torch.tensor([body["prompt"]])
        with torch.no_grad():
            written = served.generate(prompt, max_new_tokens=body["max_tokens"], do_sample=False, eos_token_id=2,
                                      pad_token_id=3)[0, prompt.shape[1] :].tolist()  # fmt: skip
        choice = {"index": 0, "text": tokenizer.decode(written, skip_special_tokens=True), "logprobs": None,
                  "finish_reason": "stop" if written[-1] == 2 else "length"}  # fmt: skip
        usage = {"prompt_tokens": 1, "completion_tokens": len(written), "total_tokens": 1 + len(written)}
        return {"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}

    def reply(path, body, headers):
        return 200, complete(body) if path == "/v1/completions" else chat("[[C]]")

    server.reply = reply
    evaluation = evaluated(generate_samples=3, max_new_tokens=5, endpoint=server.url, endpoint_model="m",
                           judge_endpoint=server.url, judge_model="m", judge_baseline="served",
                           concurrent_requests=1)  # fmt: skip
    metrics = evaluation.metrics
    assert (metrics["served_agreement"], metrics["judge_win_rate"], metrics["judge_agreement"]) == (1.0, 0.5, 1.0)
    for metric in ("exact_match", "stop_rate", "mean_tokens", "chrf"):
        assert metrics[f"served_{metric}"] == metrics[f"tuned_{metric}"]
    assert evaluation.samples[0].as_json()["judge"] == {"tuned_first": "tie", "tuned_second": "tie", "outcome": "tie"}
    assert not evaluation.problems
