"""Tokens per second of the local vLLM server against `transformers serve`, on the same model, in one run.

    python tests/bench/serve.py --model FOLDER [--tokens 64] [--rounds 3]
    python tests/bench/serve.py --tiny          # a random model, to see that the code runs

Both servers run at once and are asked in turns, at 1, 8 and 32 requests at a time; a figure is the median of its
rounds. Tokens are counted with the model's own tokenizer on what came back. The goals: vLLM is not slower with one
request and at least twice as fast with 32.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import urllib3

from llm_finetune.components.serving.vllm_serve import smoke
from llm_finetune.components.serving.vllm_serve.local import commands, model_folder
from llm_finetune.components.serving.vllm_serve.local import server as server_process
from llm_finetune.components.shared.engine import processes

LEVELS = (1, 8, 32)
GOALS = {1: 1.0, 32: 2.0}
QUESTIONS = ["Name three colours.", "What is the capital of France?", "Write a line about the sea.", "Count to ten."]


def tiny(folder: Path) -> Path:
    """Writes a random Llama that never ends by itself, with heads as wide as vLLM's CPU attention needs them."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import torch
    from tiny import tiny_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny_tokenizer(folder)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=400, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, initializer_range=0.2, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def start(
    build: Any, model: model_folder.ModelFolder, folder: Path, timeout: float
) -> tuple[server_process.Server, float]:
    """Starts a server and asks it once; returns it and the seconds from start to the first answer."""
    folder.mkdir()
    begun = time.monotonic()
    with server_process.reserve_port(0) as held:
        server = server_process.start(build(model, held.port, folder), held, folder / "server.log", timeout)
    ask(server, QUESTIONS[0], 4)
    return server, time.monotonic() - begun


def ask(server: server_process.Server, question: str, tokens: int) -> str:
    """Returns the answer to one question."""
    url = f"http://{server_process.HOST}:{server.port}/v1/chat/completions"
    body = smoke.chat_request("bench", [{"role": "user", "content": question}], tokens)
    answer = urllib3.request("POST", url, json=body, timeout=600, retries=False)
    if answer.status != 200:
        raise SystemExit(f"error: {url} answered {answer.status}: {answer.data[:500]!r}")
    return str(answer.json()["choices"][0]["message"]["content"] or "")


def rate(server: server_process.Server, at_once: int, tokens: int, count: Any) -> float:
    """Returns tokens per second with so many requests at a time, all of the same length limit."""
    questions = [QUESTIONS[number % len(QUESTIONS)] for number in range(at_once)]
    begun = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(lambda question: ask(server, question, tokens), questions))
    seconds = time.monotonic() - begun
    return sum(count(answer) for answer in answers) / seconds


def main() -> None:
    """Runs the bench; the last line printed is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model's folder")
    parser.add_argument("--tiny", action="store_true", help="make a tiny random model instead")
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--levels", type=int, nargs="+", default=list(LEVELS), help="requests at a time")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for a server to start")
    options = parser.parse_args()
    if bool(options.model) == options.tiny:
        parser.error("give --model or --tiny")
    with tempfile.TemporaryDirectory() as scratch:
        folder = tiny(Path(scratch) / "model") if options.tiny else options.model
        print(json.dumps(bench(model_folder.read(folder), Path(scratch), options)))


def bench(model: model_folder.ModelFolder, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Starts both servers, asks them in turns and prints the table; returns the ratios."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.path)

    def count(text: str) -> int:
        return len(tokenizer(text).input_ids)

    builders = {
        "vllm": lambda m, port, where: commands.vllm(m, "bench", port, where, 2048, 0, options.dtype),
        "transformers": lambda m, port, where: commands.transformers(m, "bench", port, where, options.dtype),
    }
    servers: dict[str, server_process.Server] = {}
    first: dict[str, float] = {}
    rates: dict[str, dict[int, float]] = {name: {} for name in builders}
    try:
        for name, build in builders.items():
            servers[name], first[name] = start(build, model, scratch / name, options.timeout)
        for at_once in options.levels:
            seen: dict[str, list[float]] = {name: [] for name in servers}
            for _ in range(options.rounds):
                for name, server in servers.items():
                    seen[name].append(
                        rate(server, at_once, options.tokens, lambda text: len(tokenizer(text).input_ids))
                    )
            for name, values in seen.items():
                rates[name][at_once] = statistics.median(values)
    finally:
        for server in servers.values():
            processes.end_group(server.pid, grace=5.0)
    ratios = {n: rates["vllm"][n] / max(rates["transformers"][n], 1e-9) for n in options.levels}
    print(f"{'requests at a time':>20} {'vLLM tokens/s':>16} {'transformers tokens/s':>24} {'ratio':>8}")
    for n in options.levels:
        print(f"{n:>20} {rates['vllm'][n]:>16.1f} {rates['transformers'][n]:>24.1f} {ratios[n]:>8.2f}")
    print(f"start to first answer: vLLM {first['vllm']:.1f} s, transformers {first['transformers']:.1f} s")
    goals = {n: goal for n, goal in GOALS.items() if n in ratios}
    return {
        "bench": "serve",
        "ratio_tokens_per_second": {str(n): round(ratio, 3) for n, ratio in ratios.items()},
        "ratio_first_answer": round(first["vllm"] / first["transformers"], 3),
        "ok": all(ratios[n] >= goal for n, goal in goals.items()),
    }


if __name__ == "__main__":
    main()
