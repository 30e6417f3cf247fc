"""Prompts answered per second by Evaluate's batched generation against one prompt at a time, in one run.

    python tests/bench/generate.py --model FOLDER [--prompts 32] [--tokens 32] [--rounds 3]
    python tests/bench/generate.py --tiny       # a random model, to see that the code runs
    python tests/bench/generate.py --model FOLDER --adapter FOLDER      # and vLLM with an adapter, its start included

Both ways answer the same prompts of different lengths, in turns, with no end of turn in sight; a figure is the median
of its rounds. The goal: batched is at least three times as fast.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from llm_finetune.components.evaluation.evaluate import engine, models
from llm_finetune.components.evaluation.evaluate.batching import TokenBudget
from llm_finetune.components.evaluation.evaluate.findings import Findings
from llm_finetune.components.evaluation.evaluate.generation import Answer, Decoding, GenerationRequest, generate
from llm_finetune.components.evaluation.evaluate.rows import Prompt
from llm_finetune.components.evaluation.evaluate.settings import Settings
from llm_finetune.components.shared.modeling.device import fast_dtype
from llm_finetune.components.shared.modeling.padding import ensure_pad_token

GOAL = 3.0


def load(folder: Path) -> tuple[Any, Any]:
    """Loads a model and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=fast_dtype()).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ensure_pad_token(tokenizer, model)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def prompts(count: int, vocabulary: int) -> list[Prompt]:
    """Returns prompts of 10 to 60 tokens."""
    draw = random.Random(1)
    return [Prompt(i, [draw.randrange(4, vocabulary) for _ in range(draw.randrange(10, 60))], "") for i in range(count)]


def timed(model: Any, tokenizer: Any, asked: list[Prompt], tokens: int, budget: int) -> tuple[float, list[Answer]]:
    """Returns prompts per second and the answers."""
    # -1 is no token: every answer has all its tokens, and both ways do the same work.
    decoding = Decoding(max_new_tokens=tokens, stop_token_ids=[-1])
    begun = time.perf_counter()
    answers = generate(model, tokenizer, asked, decoding, TokenBudget(budget), "bench")
    return len(asked) / (time.perf_counter() - begun), answers


def timed_vllm(base: Path, adapter: Path, asked: list[Prompt], tokens: int) -> float:
    """Returns prompts per second of vLLM as Evaluate starts it, from before its start until after its end."""
    requests = {"tuned": GenerationRequest(asked, Decoding(max_new_tokens=tokens, stop_token_ids=[]), tuned=True)}
    begun = time.perf_counter()
    engine.generate_with_vllm(models.describe(base, adapter, load_in_4bit=False), requests, "vllm", Findings())
    return len(asked) / (time.perf_counter() - begun)


def main() -> int:
    """Runs the bench; the last line printed is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model's folder")
    parser.add_argument("--adapter", type=Path, help="an adapter's folder: vLLM answers with it, too")
    parser.add_argument("--tiny", action="store_true", help="make a tiny random model instead")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    if not chosen.tiny and not chosen.model:
        parser.error("--model or --tiny")
    with tempfile.TemporaryDirectory() as scratch:
        if chosen.tiny:
            sys.path.insert(0, str(Path(__file__).parents[1]))
            from tiny import tiny_model

            chosen.model = tiny_model(Path(scratch) / "model")
        model, tokenizer = load(chosen.model)
    asked = prompts(chosen.prompts, min(len(tokenizer), 400) if chosen.tiny else len(tokenizer))
    ways = {"one by one": 1, "batched": Settings().tokens_per_batch}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    answers = {}
    with torch.no_grad():
        for _ in range(chosen.rounds):
            for way, budget in ways.items():
                rate, answers[way] = timed(model, tokenizer, asked, chosen.tokens, budget)
                rates[way].append(rate)
    if chosen.adapter:
        del model  # as in Evaluate, vLLM has the GPU for itself
        torch.cuda.empty_cache()
        rates["vLLM"] = [timed_vllm(chosen.model, chosen.adapter, asked, chosen.tokens)]
    return report({way: statistics.median(own) for way, own in rates.items()}, answers)


def report(rates: dict[str, float], answers: dict[str, list[Answer]]) -> int:
    """Prints the table and the figures as JSON; returns the exit status."""
    print(f"{'way':<12}{'prompts/s':>12}")
    for way, rate in rates.items():
        print(f"{way:<12}{rate:>12.2f}")
    ratio = rates["batched"] / rates["one by one"]
    same = sum(a.text == b.text for a, b in zip(*answers.values(), strict=True)) / len(answers["batched"])
    ok = ratio >= GOAL
    print(json.dumps({"ratio": round(ratio, 2), "goal": GOAL, "same_answers": round(same, 3), "ok": ok}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
