"""Merge & Export: merges the adapter, proves that nothing was lost, and ships the model with all it needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llm_finetune.components.serving.merge_export import layout, merge, parity, precision
from llm_finetune.components.serving.merge_export.destinations import Destinations
from llm_finetune.components.serving.merge_export.model_card import write_model_card
from llm_finetune.components.serving.merge_export.settings import Settings
from llm_finetune.components.shared.files import atomic_folder, content_hash
from llm_finetune.components.shared.summary import format_bytes, write_summary

ORIGINAL = "original weights"


@dataclass(frozen=True)
class MergeFacts:
    """What was exported; the metadata of `merged_model`.

    Attributes:
        base_model: Name of the base model.
        base_revision: Its commit.
        save_format: `safetensors` or `pt`.
        dtype: Precision of the stored weights.
        dtype_reason: Why this one, with the figures of those that were refused.
        size_bytes: Bytes of the weights.
        merged_into: `original weights` or `weights dequantised from NF4`.
        parity_rows: Rows compared.
        parity_tokens: Labelled tokens in them.
        adapter_loss: Loss per labelled token of the adapter on its base, in nats.
        merged_loss: The same for the merged model as stored.
        loss_difference: Merged minus adapter.
        loss_on_original_weights: Loss of the adapter on the base's original weights: the other candidate of an adapter
            trained in 4 bit, else `adapter_loss` again.
        agreement: Share of tokens that both find most likely.
        max_logit_difference: Largest difference of a logit.
        pushed_to_hub: Whether it is on the Hub.
        hub_repo: Its repository; empty if not pushed.
        hub_commit: URL of the commit; empty if not pushed.
        export_uri: Where it was copied to; empty if nowhere.
        registered: `name/version` in the Model Registry; empty if not registered.
        content_hash: Hash of the folder.
    """

    base_model: str
    base_revision: str
    save_format: str
    dtype: str
    dtype_reason: str
    size_bytes: int
    merged_into: str
    parity_rows: int
    parity_tokens: int
    adapter_loss: float
    merged_loss: float
    loss_difference: float
    loss_on_original_weights: float
    agreement: float
    max_logit_difference: float
    pushed_to_hub: bool
    hub_repo: str
    hub_commit: str
    export_uri: str
    registered: str
    content_hash: str


def merge_export(
    model_config: str | Path,
    ft_result: str | Path,
    merged_model: str | Path,
    model_summary: str | Path,
    settings: Settings,
    base: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    uri: str = "",
    plan: Mapping[str, Any] | None = None,
) -> MergeFacts:
    """Writes a model folder that a server loads as it is.

    Args:
        model_config: Folder of the base model, or its reference.
        ft_result: Folder of the adapter with tokenizer, generation config and rows to compare on.
        merged_model: Folder to write.
        model_summary: Markdown file to write.
        settings: The card's settings.
        base: Metadata of the base model, for the model card.
        training: Metadata of the adapter, for the model card.
        evaluation: Metadata of the evaluation, for the model card.
        uri: Where the folder to write will lie for others, for the Model Registry.
        plan: The pipeline's parameters and recipe that the run was started with, for the model card.

    Returns:
        What was exported.

    Raises:
        UserError: If the inputs do not fit each other, the merged model answers differently from the adapter, or a
            place to publish to refuses.
    """
    destinations = Destinations.checked(settings, uri)
    base, training = base or {}, training or {}
    load_in_4bit = merge.trained_in_4bit(ft_result)
    rows = parity.parity_rows(ft_result)
    merger = merge.merger(model_config, ft_result, load_in_4bit)
    before = merger.adapter_answers(rows)
    on_original = merger.adapter_answers(rows, original=True) if load_in_4bit else before
    with atomic_folder(merged_model) as folder:
        tried = precision.narrowest(
            settings.dtype,
            merge.stored_dtype(model_config),
            precision.beyond_float16(before.largest, merge.model_type(model_config)),
            partial(_attempt, merger, Path(ft_result), folder, rows, before),
            parity.Bounds(settings.loss_tolerance, settings.min_agreement),
        )
        taken = tried[-1]
        if settings.save_format == "pt":
            print("warning: save_format = pt writes pickle files, which can run code when they are loaded", flush=True)
            layout.to_pickle(folder)
        layout.add_licence(Path(model_config), folder)
        if settings.keep_adapter:
            named = str(base.get("model_name", "")), str(base.get("revision", ""))
            layout.add_adapter(Path(ft_result), folder, *named)
        write_model_card(
            folder,
            Path(model_config),
            Path(ft_result),
            base,
            training,
            evaluation or {},
            plan or {},
            load_in_4bit=load_in_4bit,
            dtype=taken.dtype,
            dtype_reason=precision.reason(settings.dtype, tried),
            save_format=settings.save_format,
            parity=vars(taken.parity),
        )
        layout.make_readable_by_others(folder)
    content, name = content_hash(merged_model), str(base.get("model_name", ""))
    figures = {"base_model": name, **vars(taken.parity), **_numbers(evaluation or {})}
    sent = destinations.send(Path(merged_model), content, name, figures)
    facts = MergeFacts(
        base_model=name,
        base_revision=str(base.get("revision", "")),
        save_format=settings.save_format,
        dtype=taken.dtype,
        dtype_reason=precision.reason(settings.dtype, tried),
        size_bytes=layout.weight_bytes(Path(merged_model)),
        merged_into="weights dequantised from NF4" if load_in_4bit else ORIGINAL,
        **vars(taken.parity),
        loss_on_original_weights=on_original.loss,
        **sent,
        content_hash=content,
    )
    _write_summary(model_summary, facts, tried)
    return facts


def _attempt(
    merger: merge.Merger, ft_result: Path, folder: Path, rows: parity.Rows, before: parity.Answers, dtype: torch.dtype
) -> parity.Parity:
    """Writes the model in a type, in place of an earlier attempt, and compares it with the adapter."""
    layout.empty(folder)
    merger.write(folder, dtype)
    layout.add_tokenizer(ft_result, folder)
    layout.make_config_readable(folder)
    # Many CPUs only emulate 16-bit products, tens of times slower; the weights are the rounded ones either way.
    after = merger.merged_answers(folder, rows, dtype if torch.cuda.is_available() else torch.float32)
    return parity.compare(before, after, len(rows))


def _numbers(metadata: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metadata.items() if isinstance(value, int | float)}


def _write_summary(path: str | Path, facts: MergeFacts, tried: list[precision.Tried]) -> None:
    shown = {
        "base model": facts.base_model or "unknown",
        "save_format": facts.save_format,
        "dtype": facts.dtype,
        **({f"tried {one.dtype}": one for one in tried} if len(tried) > 1 else {}),
        "size": format_bytes(facts.size_bytes),
        "merged into": facts.merged_into,
        "adapter loss": f"{facts.adapter_loss:.4f}",
        "merged loss": f"{facts.merged_loss:.4f}",
        **(
            {"on the original weights": f"{facts.loss_on_original_weights:.4f}"}
            if facts.merged_into != ORIGINAL
            else {}
        ),
        "same most likely token": f"{facts.agreement:.2%} of {facts.parity_tokens:,}",
        "largest logit difference": f"{facts.max_logit_difference:.3f}",
        "pushed_to_hub": facts.pushed_to_hub,
        "hub_repo": facts.hub_repo or "none",
        "exported to": facts.export_uri or "this run's artifact only",
        "registered as": facts.registered or "not registered",
    }
    notes = [
        f"Losses in nats per completion token, on {facts.parity_rows} validation rows: the adapter on its base in "
        f"float32, the merged model as read back from its files in {facts.dtype}."
    ]
    if len(tried) > 1:
        wider = " float32 takes twice the memory of 16 bits, in the server too." if facts.dtype == "float32" else ""
        notes.append(
            "dtype = auto takes the narrowest type that keeps what was trained. A narrower one rounds away "
            f"changes of the adapter that are smaller than its steps; a longer training makes larger ones.{wider}"
        )
    if facts.save_format == "pt":
        notes.append("pt files are pickle: loading them can run code. Take safetensors wherever you can.")
    write_summary(path, "Merged model", shown, notes)
