"""Evaluate: base and tuned model on the same held-out rows."""

import json
import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from transformers import AutoTokenizer, GenerationConfig

from llm_finetune.components.evaluation.evaluate.generation import Answer, Prompt, figures, generate, prompt_of
from llm_finetune.components.evaluation.evaluate.settings import Settings
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.causal_lm import evaluating, load_base
from llm_finetune.components.shared.device import fast_dtype
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.losses import by_length, completion_nll, padded
from llm_finetune.components.shared.pages import write_page
from llm_finetune.components.shared.progress import Progress

RESAMPLES = 2000
GENERATION_BATCH = 32


def evaluate(
    model_config: str | Path,
    ft_result: str | Path,
    val_tokens: str | Path,
    val_sft: str | Path,
    eval_page: str | Path,
    settings: Settings,
    load_in_4bit: bool = False,
) -> tuple[dict[str, float | int], list[dict[str, Any]]]:
    """Measures base and tuned model.

    Args:
        model_config: Folder of the base model or its reference.
        ft_result: Folder of the adapter.
        val_tokens: Validation rows, one document each, with `row` pointing into `val_sft`.
        val_sft: The same rows as text.
        eval_page: HTML page to write.
        settings: The card's settings.
        load_in_4bit: Whether the adapter was trained on an NF4 base.

    Returns:
        Metrics by name, and per generated sample its prompt, reference and both answers. Losses are in nats per
        completion token; `loss_delta` is tuned minus base, with the 95 % interval of a paired bootstrap over rows.

    Raises:
        UserError: If there is no validation row, or a loss is not finite.
    """
    tokenizer = AutoTokenizer.from_pretrained(ft_result, trust_remote_code=False)
    rows = _sample(Path(val_tokens), settings)
    dtype = fast_dtype()
    base = load_base(model_config, dtype, "sdpa", load_in_4bit)
    model = PeftModel.from_pretrained(base, str(ft_result))
    prompts = [prompt_of(r["row"], r["input_ids"], r["labels"], tokenizer) for r in rows[: settings.generate_samples]]
    ends = _end_tokens(Path(ft_result))
    nll: dict[str, np.ndarray] = {}
    answers: dict[str, list[Answer]] = {}
    with evaluating(model):
        for name in ("base", "tuned"):
            if name == "base":
                with model.disable_adapter():
                    nll[name] = _losses(model, rows, settings, name)
                    answers[name] = _answers(model, tokenizer, prompts, ends, settings, name)
            else:
                nll[name] = _losses(model, rows, settings, name)
                answers[name] = _answers(model, tokenizer, prompts, ends, settings, name)
    counts = np.array([sum(label != -100 for label in row["labels"][1:]) for row in rows])
    metrics = _metrics(nll, counts, prompts, answers, settings)
    samples = _samples(prompts, answers, Path(val_sft))
    write_page(
        eval_page,
        Path(__file__).parent / "evaluation.html.jinja",
        title="Evaluate",
        metrics=metrics,
        samples=samples,
        settings=settings,
    )
    return metrics, samples


def _sample(val_tokens: Path, settings: Settings) -> list[dict[str, Any]]:
    total = tables.count_rows(val_tokens)
    if not total:
        raise UserError(f"the validation rows in {val_tokens} are empty: nothing can be measured")
    count = min(settings.max_samples or total, total)
    chosen = set(random.Random(settings.seed).sample(range(total), count))
    rows, first = [], 0
    for batch in tables.batches(val_tokens, ["input_ids", "labels", "row"]):
        wanted = [i - first for i in range(first, first + batch.num_rows) if i in chosen]
        rows += batch.take(wanted).to_pylist()
        first += batch.num_rows
    return rows


def _losses(model: Any, rows: list[dict[str, Any]], settings: Settings, name: str) -> np.ndarray:
    sums = np.zeros(len(rows))
    progress = Progress(f"loss of the {name} model", len(rows), "rows")
    done = 0
    for group in by_length([len(row["input_ids"]) for row in rows], settings.tokens_per_batch):
        nll, _ = completion_nll(model, padded([rows[i] for i in group], model.device))
        sums[group] = nll.double().cpu().numpy()
        done += len(group)
        progress.update(done)
    if not np.isfinite(sums).all():
        raise UserError(
            f"the {name} model's loss is not finite on {int((~np.isfinite(sums)).sum())} of {len(rows)} rows"
        )
    return sums


def _answers(
    model: Any, tokenizer: Any, prompts: list[Prompt], ends: list[int], settings: Settings, name: str
) -> list[Answer]:
    label = f"answers of the {name} model"
    return generate(model, tokenizer, prompts, ends, settings.max_new_tokens, label, GENERATION_BATCH)


def _end_tokens(ft_result: Path) -> list[int]:
    ends = GenerationConfig.from_pretrained(ft_result).eos_token_id
    return ends if isinstance(ends, list) else [ends]


def _metrics(
    nll: dict[str, np.ndarray],
    counts: np.ndarray,
    prompts: list[Prompt],
    answers: dict[str, list[Answer]],
    settings: Settings,
) -> dict[str, float | int]:
    tokens = int(counts.sum())
    loss = {name: float(sums.sum() / tokens) for name, sums in nll.items()}
    low, high = _interval(nll["tuned"] - nll["base"], counts, settings.seed)
    metrics: dict[str, float | int] = {
        "base_loss": loss["base"],
        "tuned_loss": loss["tuned"],
        "loss_delta": loss["tuned"] - loss["base"],
        "loss_delta_ci_low": low,
        "loss_delta_ci_high": high,
        "base_perplexity": math.exp(min(loss["base"], 700)),
        "tuned_perplexity": math.exp(min(loss["tuned"], 700)),
        "samples_used": len(counts),
        "completion_tokens": tokens,
        "generated_samples": len(prompts),
    }
    if prompts:
        both = {name: figures(prompts, given) for name, given in answers.items()}
        for figure in both["base"]:
            metrics |= {f"{name}_{figure}": both[name][figure] for name in ("base", "tuned")}
    return {name: value if isinstance(value, int) else round(value, 6) for name, value in metrics.items()}


def _interval(difference: np.ndarray, counts: np.ndarray, seed: int) -> tuple[float, float]:
    """Returns the 95 % interval of Σ difference / Σ tokens when rows are drawn anew with replacement."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(counts), (RESAMPLES, len(counts)))
    deltas = difference[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(deltas, (0.025, 0.975))
    return float(low), float(high)


def _samples(prompts: list[Prompt], answers: dict[str, list[Answer]], val_sft: Path) -> list[dict[str, Any]]:
    wanted = {prompt.row for prompt in prompts}
    texts: dict[int, str] = {}
    first = 0
    for batch in tables.batches(val_sft, ["prompt"]):
        texts |= {first + i: batch["prompt"][i].as_py() for i in range(batch.num_rows) if first + i in wanted}
        first += batch.num_rows
    return [
        {
            "row": prompt.row,
            "prompt": texts[prompt.row],
            "reference": prompt.reference,
            **{name: asdict(answers[name][i]) for name in ("base", "tuned")},
        }
        for i, prompt in enumerate(prompts)
    ]


def report(metrics: dict[str, float | int], samples: list[dict[str, Any]]) -> str:
    """Returns the evaluation report's file: metrics and samples as JSON."""
    return json.dumps({"metrics": metrics, "samples": samples}, indent=2, ensure_ascii=False, allow_nan=False)
