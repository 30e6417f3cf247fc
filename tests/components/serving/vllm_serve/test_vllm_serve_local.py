"""The real server processes: what is started answers, and what is stopped is gone with all that it started."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import urllib3

from llm_finetune.components.serving.vllm_serve import adapters, smoke
from llm_finetune.components.serving.vllm_serve.local import commands
from llm_finetune.components.serving.vllm_serve.local import server as server_process
from llm_finetune.components.shared.engine import processes
from llm_finetune.components.shared.errors import UserError

# A server that is healthy at once, with a grandchild that ignores TERM, as an engine that hangs does.
STUBBORN = """
import http.server, signal, subprocess, sys
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
subprocess.Popen([sys.executable, "-c", child])
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""
CARD = """
import json, sys
from kfp import dsl
from llm_finetune.components.serving.vllm_serve import component
model, out, settings = sys.argv[1:]
component.vllm_serve.python_func(
    dsl.Model(uri=model), dsl.Metrics(uri=out + "/eval_report"), dsl.Artifact(uri=out + "/deployment_info"), dsl.Markdown(uri=out + "/deployment_page"),
    target="local", port=0, deployment_name="tiny", settings=json.loads(settings),
)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose heads are as wide as vLLM's CPU attention needs them."""
    import torch
    from tiny import tiny_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tiny_tokenizer(tmp_path_factory.mktemp("served") / "model")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=400, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=3,
        initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def left(group: int) -> list[str]:
    """Returns what still runs in a process group."""
    running = []
    for process in psutil.process_iter(["pid", "status", "cmdline"]):
        try:
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                running.append(" ".join(process.info["cmdline"] or []))
        except ProcessLookupError:
            continue
    return running


def until_gone(group: int, seconds: float) -> list[str]:
    deadline = time.monotonic() + seconds
    while (running := left(group)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return running


def launch(code: str, folder: Path, *arguments: str) -> commands.Launch:
    return commands.Launch("server", [sys.executable, "-c", code, *arguments], dict(os.environ), folder, 0, "auto")


def test_stop_kills_what_ignores_it(tmp_path: Path) -> None:
    with server_process.reserve_port(0) as held:
        server = server_process.start(launch(STUBBORN, tmp_path, str(held.port)), held, tmp_path / "server.log", 20)
    assert len(left(server.pid)) == 3
    info = tmp_path / "info"
    info.write_text(json.dumps({"target": "local", "process_group": server.pid, "process_started": server.started}))
    assert server_process.is_running(info)
    assert server_process.stop(info, grace=1) is True
    assert left(server.pid) == []
    assert not server_process.is_running(info) and server_process.stop(info) is False


def test_number_that_belongs_to_another_process_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "100"], start_new_session=True)
    info = tmp_path / "info"
    info.write_text(json.dumps({"target": "local", "process_group": other.pid, "process_started": 1}))
    assert server_process.stop(info) is False
    assert other.poll() is None
    other.kill()
    other.wait()


def test_supervisor_that_was_killed_leaves_a_server_that_can_be_stopped(tmp_path: Path) -> None:
    with server_process.reserve_port(0) as held:
        server = server_process.start(launch(STUBBORN, tmp_path, str(held.port)), held, tmp_path / "server.log", 20)
    os.kill(server.pid, signal.SIGKILL)
    assert processes.end_group(server.pid, grace=1) is True
    assert left(server.pid) == []


def test_server_that_dies_shows_its_last_words(tmp_path: Path) -> None:
    code = "import sys; print('loading', flush=True); sys.exit('ValueError: no such architecture')"
    told = r"status 1 before it was ready(.|\n)*loading\nValueError: no such"
    with server_process.reserve_port(0) as held, pytest.raises(UserError, match=told):
        server_process.start(launch(code, tmp_path), held, tmp_path / "server.log", 20)


def test_server_that_never_gets_ready_is_ended(tmp_path: Path) -> None:
    started = time.monotonic()
    with (
        server_process.reserve_port(0) as held,
        pytest.raises(UserError, match=r"was not ready after 1 s.*ready_timeout"),
    ):
        server_process.start(launch("import time; time.sleep(1000)", tmp_path), held, tmp_path / "server.log", 1)
    assert time.monotonic() - started < 10
    assert not [p for p in psutil.process_iter(["cmdline"]) if "time.sleep(1000)" in (p.info["cmdline"] or [])]


def test_only_local_deployments_are_stopped(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        server_process.stop(tmp_path / "none")
    (tmp_path / "info").write_text('{"target": "kserve"}')
    with pytest.raises(UserError, match="only local servers are stopped"):
        server_process.stop(tmp_path / "info")


@pytest.fixture(scope="module")
def tuned(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters whose answers differ from their base's and from each other's."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folders = []
    for seed, rank in ((5, 8), (6, 32)):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank, lora_alpha=64, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False
        )
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
        folders.append(tmp_path_factory.mktemp("adapters") / f"rank{rank}")
        adapted.save_pretrained(folders[-1])
    return folders


@pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="vLLM is not installed")
def test_adapters_come_and_go_while_vllm_serves_and_it_ends_with_its_owner(
    model: Path, tuned: list[Path], tmp_path: Path
) -> None:
    first, second = tuned
    prompt, asked = "Name three colours.", [{"role": "user", "content": "Name three colours."}]
    owner = subprocess.Popen(["sleep", "1000"])
    settings = {
        "serve_adapter": True, "adapter_base": str(model), "dtype": "float32", "answer_tokens": 12,
        "ready_timeout": 280,
    }  # fmt: skip
    rows = [{"messages": asked, "reference": "Red, green, blue."}]
    (tmp_path / "eval_report").write_text(json.dumps({"metrics": {}, "questions": rows}))
    # The card's own process ends and its output closes while the server goes on.
    card = subprocess.run(
        [sys.executable, "-c", CARD, str(first), str(tmp_path), json.dumps(settings)],
        env=os.environ | {server_process.OWNER_VARIABLE: str(owner.pid)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=300,
    )  # fmt: skip
    try:
        assert card.returncode == 0, card.stdout
        info = server_process.read_info(tmp_path / "deployment_info")
        url, pid = info["base_url"], info["pid"]
        assert (info["model"], info["server"], info["dtype"], info["max_model_len"]) == ("tiny", "vllm", "float32", 512)
        assert Path(info["log"]).is_file() and 0 < info["first_token_seconds"] <= info["answers"][0]["seconds"]
        assert set(smoke.models(url)) == {"tiny-base", "tiny"}
        expected = {"tiny-base": greedy(model, prompt, 12), "tiny": greedy(model, prompt, 12, first)}
        [answer] = info["answers"]
        assert (info["asked"], answer["prompt"]) == ("validation rows", prompt)
        assert answer["text"].strip() == expected["tiny"].strip()
        told = {name: smoke.model_roots(url)[name] for name in ("tiny", "tiny-base")}
        assert told == {"tiny": str(first), "tiny-base": str(model)}
        with pytest.raises(smoke.SmokeFailure, match=f"'tiny' was loaded from {first}, not from {second}"):
            smoke.smoke_test(url, "tiny", [asked], 4, 60, root=str(second))
        with pytest.raises(
            UserError, match=rf"port {urllib3.util.parse_url(url).port} .* and serves tiny-base, tiny\."
        ):
            server_process.reserve_port(urllib3.util.parse_url(url).port).__enter__()
        pasted = subprocess.run(["bash", "-c", info["example_curl"]], capture_output=True, text=True)
        assert json.loads(pasted.stdout)["choices"][0]["message"]["content"] == answer["text"]
        metrics = urllib3.request("GET", url.removesuffix("/v1") + "/metrics").data.decode()
        assert "vllm:num_requests_running" in metrics
        page = (tmp_path / "deployment_page").read_text()
        assert info["example_curl"] in page and answer["text"] in page
        adapters.load(url, "other", second)
        expected["other"] = greedy(model, prompt, 12, second)
        assert len(set(expected.values())) == 3
        answers = {name: smoke.ask(url, name, asked, 12, 60).text for name in smoke.models(url)}
        # A character that the token limit cut in two is left out of a streamed answer.
        whole = {name: text.strip().rstrip("\ufffd") for name, text in answers.items()}
        assert whole == {name: text.strip().rstrip("\ufffd") for name, text in expected.items()}
        with pytest.raises(UserError, match=r"serves no 'othr'; did you mean 'other'"):
            adapters.unload(url, "othr")
        adapters.unload(url, "other")
        assert set(smoke.models(url)) == {"tiny-base", "tiny"}
        with pytest.raises(smoke.SmokeFailure):
            smoke.ask(url, "other", asked, 12, 60)
        assert smoke.ask(url, "tiny", asked, 12, 60).text == answers["tiny"]
        assert server_process.read_info(tmp_path / "deployment_info")["pid"] == pid
        assert server_process.is_running(tmp_path / "deployment_info")
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        assert until_gone(info["process_group"], 30) == []
    finally:
        owner.kill()
        owner.wait()
        if (tmp_path / "deployment_info").exists():
            server_process.stop(tmp_path / "deployment_info")


def greedy(model: Path, prompt: str, tokens: int, adapter: Path | None = None) -> str:
    """Returns what transformers answers to a chat request."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    if adapter:
        from peft import PeftModel

        network = PeftModel.from_pretrained(network, adapter)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = network.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
