"""Merges the adapter, compares the result with the adapter, and exports the model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from llm_finetune.components.serving.merge_export import layout, merge, parity, precision
from llm_finetune.components.serving.merge_export.destinations import Destinations
from llm_finetune.components.serving.merge_export.model_card import MergedWeights, write_model_card
from llm_finetune.components.serving.merge_export.settings import Settings
from llm_finetune.components.shared.files import atomic_folder, content_hash
from llm_finetune.components.shared.summary import format_bytes, write_summary

__all__ = ["MergeFacts", "Settings", "merge_export"]

ORIGINAL = "original weights"


@dataclass(frozen=True)
class MergeFacts:
    """Facts of the export; the metadata of `merged_model`.

    Attributes:
        base_model: Name of the base model.
        base_revision: Commit of the base model.
        save_format: `safetensors` or `pt`.
        dtype: Type of the stored weights.
        dtype_reason: Why this type was chosen, with the differences for rejected types.
        size_bytes: Size of the weights in bytes.
        merged_into: `original weights` or `weights dequantized from NF4`.
        parity_rows: Number of compared rows.
        parity_tokens: Number of their labelled tokens.
        adapter_loss: Loss per labelled token of the adapter on its base, in nats.
        merged_loss: Loss per labelled token of the merged model as stored, in nats.
        loss_difference: merged_loss - adapter_loss.
        loss_on_original_weights: Loss of the adapter on the original weights of the base; differs from `adapter_loss`
            for an adapter trained in 4 bit.
        agreement: Fraction of labelled positions with the same most likely token.
        max_logit_difference: Largest absolute difference of a logit.
        pushed_to_hub: Whether the model was pushed to the Hub.
        hub_repo: Repository on the Hub; empty if not pushed.
        hub_commit: URL of the commit; empty if not pushed.
        export_uri: URI of the copy; empty if not copied.
        registered: `name/version` in the Model Registry; empty if not registered.
        content_hash: Content hash of the folder.
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
    base: Mapping[str, object] | None = None,
    training: Mapping[str, object] | None = None,
    evaluation: Mapping[str, object] | None = None,
    uri: str = "",
    plan: Mapping[str, object] | None = None,
) -> MergeFacts:
    """Writes a model folder that vLLM and transformers load.

    Args:
        model_config: Folder of the base model, or its reference.
        ft_result: Folder of the adapter with tokenizer, generation config and rows for the comparison.
        merged_model: Folder to write.
        model_summary: Markdown file to write.
        settings: The card's settings.
        base: Metadata of the base model, for the model card.
        training: Metadata of the adapter, for the model card.
        evaluation: Metadata of the evaluation, for the model card.
        uri: URI of the artifact, for the Model Registry.
        plan: Parameters and recipe of the run, for the model card.

    Returns:
        Facts of the export.

    Raises:
        UserError: If the inputs do not match, the merged model differs from the adapter, or publishing fails.
    """
    destinations = Destinations.validated(settings, uri)
    base, training = base or {}, training or {}
    load_in_4bit = merge.trained_in_4bit(ft_result)
    rows = parity.parity_rows(ft_result)
    merger = merge.create_merger(model_config, ft_result, load_in_4bit)
    before = merger.adapter_predictions(rows)
    on_original = merger.adapter_predictions(rows, original=True) if load_in_4bit else before
    with atomic_folder(merged_model) as folder:
        attempts = precision.choose_dtype(
            settings.dtype,
            merge.stored_dtype(model_config),
            precision.float16_obstacle(before.max_activation, merge.model_type(model_config)),
            partial(_write_and_compare, merger, Path(ft_result), folder, rows, before),
            parity.Tolerances(settings.loss_tolerance, settings.min_agreement),
        )
        dtype, measured = _accepted(attempts)
        reason = precision.explain(settings.dtype, attempts)
        if settings.save_format == "pt":
            print("warning: save_format = pt writes pickle files, which can execute code when loaded", flush=True)
            layout.to_pickle(folder)
        layout.add_license_files(Path(model_config), folder)
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
            MergedWeights(load_in_4bit, dtype, reason, settings.save_format, measured),
        )
        layout.make_world_readable(folder)
    content, name = content_hash(merged_model), str(base.get("model_name", ""))
    figures = {"base_model": name, **asdict(measured), **_numbers(evaluation or {})}
    published = destinations.publish(Path(merged_model), content, name, figures)
    facts = MergeFacts(
        base_model=name,
        base_revision=str(base.get("revision", "")),
        save_format=settings.save_format,
        dtype=dtype,
        dtype_reason=reason,
        size_bytes=layout.weight_bytes(Path(merged_model)),
        merged_into="weights dequantized from NF4" if load_in_4bit else ORIGINAL,
        **asdict(measured),
        loss_on_original_weights=on_original.loss,
        **asdict(published),
        content_hash=content,
    )
    _write_summary(model_summary, facts, attempts)
    return facts


def _write_and_compare(
    merger: merge.Merger,
    ft_result: Path,
    folder: Path,
    rows: parity.Rows,
    before: parity.Predictions,
    dtype: torch.dtype,
) -> parity.Parity:
    """Writes the model in a type, replacing the previous attempt, and compares it with the adapter."""
    layout.clear_folder(folder)
    merger.write(folder, dtype)
    layout.add_tokenizer(ft_result, folder)
    layout.add_legacy_config_keys(folder)
    # Many CPUs emulate 16-bit matrix products, which is far slower; float32 uses the same rounded weights.
    after = merger.merged_predictions(folder, rows, dtype if torch.cuda.is_available() else torch.float32)
    return parity.compare(before, after, len(rows))


def _accepted(attempts: list[precision.Attempt]) -> tuple[str, parity.Parity]:
    """Returns type and parity of the last attempt, which was accepted."""
    last = attempts[-1]
    assert last.parity is not None
    return last.dtype, last.parity


def _numbers(metadata: Mapping[str, object]) -> dict[str, float]:
    return {name: float(value) for name, value in metadata.items() if isinstance(value, int | float)}


def _write_summary(path: str | Path, facts: MergeFacts, attempts: list[precision.Attempt]) -> None:
    shown = {
        "base model": facts.base_model or "unknown",
        "save_format": facts.save_format,
        "dtype": facts.dtype,
        **({f"tried {one.dtype}": one for one in attempts} if len(attempts) > 1 else {}),
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
        "exported to": facts.export_uri or "artifact only",
        "registered as": facts.registered or "not registered",
    }
    notes = [
        f"Losses in nats per completion token, on {facts.parity_rows} validation rows: of the adapter on its base in "
        f"float32, and of the merged model as stored in {facts.dtype}."
    ]
    if len(attempts) > 1:
        wider = (
            " float32 needs twice the memory of 16-bit types, also on the server." if facts.dtype == "float32" else ""
        )
        notes.append(
            "dtype = auto chooses the narrowest type that preserves the training. Small changes by the adapter are "
            f"lost in the rounding to a narrower type; a longer training makes larger changes.{wider}"
        )
    if facts.save_format == "pt":
        notes.append("pt files are pickle: loading them can execute code. Prefer safetensors.")
    write_summary(path, "Merged model", shown, notes)
