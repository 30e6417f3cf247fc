"""Streams datasets from the Hugging Face Hub, at a commit."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from llm_finetune.components.shared.errors import UserError, one_line

ROWS_PER_BATCH = 1_000
LICENSE_SEPARATOR = " and "


def resolve(dataset: str, revision: str) -> tuple[str, str]:
    """Returns the current commit of a dataset's revision, and the license on its dataset card.

    Args:
        dataset: Name on the Hub, such as `tatsu-lab/alpaca`.
        revision: Branch, tag or commit; empty for the default branch.

    Raises:
        UserError: If the dataset or revision does not exist, or access is denied.
    """
    from huggingface_hub import HfApi

    with translate_errors(dataset, revision):
        info = HfApi(token=_token()).dataset_info(dataset, revision=revision or None)
    if not info.sha:
        raise UserError(f"the Hub returned no commit for {dataset}")
    licenses = (info.card_data.get("license") if info.card_data else None) or []
    return info.sha, LICENSE_SEPARATOR.join([licenses] if isinstance(licenses, str) else licenses)


def stream_rows(dataset: str, config: str, split: str, commit: str) -> Iterator[pa.RecordBatch]:
    """Streams a split.

    Args:
        dataset: Name on the Hub.
        config: Configuration; empty if the dataset has only one.
        split: Name of the split.
        commit: Commit returned by `resolve`.

    Yields:
        Record batches with one schema.

    Raises:
        UserError: If the split or configuration does not exist, or the connection fails.
    """
    datasets = _import_datasets()
    with translate_errors(dataset, commit):
        streamed = datasets.load_dataset(
            dataset, name=config or None, split=split, revision=commit, streaming=True, token=_token()
        )
        features = streamed.features
        schema = features.arrow_schema.remove_metadata() if features else None
        try:
            for table in streamed.with_format("arrow").iter(batch_size=ROWS_PER_BATCH):
                table = table.replace_schema_metadata(None)
                schema = schema or table.schema
                yield from table.select(schema.names).cast(schema).combine_chunks().to_batches()
        except (TypeError, pa.ArrowInvalid) as error:  # a dataset without declared types has those of its first rows
            if isinstance(error, pa.ArrowInvalid) and "truncated" not in str(error):
                raise
            raise _type_changed(dataset, commit, schema, error) from error


@contextmanager
def translate_errors(dataset: str, revision: str) -> Iterator[None]:
    """Translates errors of the Hub libraries into messages that say what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{dataset} is gated: accept its terms on its page, then set HF_TOKEN to a token of that account"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"dataset {dataset!r} does not exist on the Hub or is private: check hf_dataset, or set HF_TOKEN to a "
            "token with access"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{dataset} has no revision {revision!r}: hf_revision is a branch, tag or commit") from None
    except errors.HFValidationError as error:
        raise UserError(f"hf_dataset = {dataset!r} is not a dataset name: {error}") from None
    except errors.HfHubHTTPError as error:
        raise UserError(f"the Hub rejected the request for {dataset}: {error}") from None
    except (ValueError, RuntimeError) as error:  # datasets: unknown split or configuration, a script, no data files
        raise UserError(f"{dataset} could not be loaded: {one_line(error)}") from error
    except OSError as error:
        raise UserError(f"the Hub is unreachable, so {dataset} cannot be read: {error}") from error
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "aiohttp", "datasets")):
            raise
        raise UserError(f"{dataset} could not be read from the Hub: {one_line(error)}") from error


def _type_changed(dataset: str, commit: str, schema: pa.Schema | None, error: Exception) -> UserError:
    unknown = [field.name for field in schema or [] if pa.types.is_null(field.type)]
    empty = f" ({', '.join(map(repr, unknown))} had only null values)" if unknown else ""
    return UserError(
        f"{dataset}: later rows do not have the column types of the first rows{empty}: {one_line(error)}. The "
        "dataset declares no types. Read its files instead, where types are inferred from all rows: source_type = "
        f"'jsonl_path', jsonl_path = 'hf://datasets/{dataset}@{commit}/' followed by the file names, such as *.jsonl"
    )


def _import_datasets() -> Any:
    """Imports `datasets` without torch, which it would otherwise import if installed."""
    before = os.environ.get("USE_TORCH")
    os.environ["USE_TORCH"] = "0"
    try:
        import datasets
    finally:
        if before is None:
            del os.environ["USE_TORCH"]
        else:
            os.environ["USE_TORCH"] = before
    datasets.disable_progress_bars()
    return datasets


def _token() -> str | None:
    return os.environ.get("HF_TOKEN") or None
