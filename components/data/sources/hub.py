"""Datasets of the Hugging Face Hub: streamed, at a revision that is pinned to a commit first."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from llm_finetune.components.shared.errors import UserError

ROWS = 1_000
LICENSE_SEPARATOR = " and "


def resolved(dataset: str, revision: str) -> tuple[str, str]:
    """Returns the commit that a revision of a dataset means now, and the license that its card names, or nothing.

    Args:
        dataset: Name on the Hub, such as `tatsu-lab/alpaca`.
        revision: Branch, tag or commit; empty for the main branch.

    Raises:
        UserError: If the dataset or revision does not exist or may not be read.
    """
    from huggingface_hub import HfApi

    with explained(dataset, revision):
        info = HfApi(token=_token()).dataset_info(dataset, revision=revision or None)
    if not info.sha:
        raise UserError(f"the Hub names no commit for {dataset}")
    named = (info.card_data.get("license") if info.card_data else None) or []
    return info.sha, LICENSE_SEPARATOR.join([named] if isinstance(named, str) else named)


def rows(dataset: str, config: str, split: str, commit: str) -> Iterator[pa.RecordBatch]:
    """Streams a split.

    Args:
        dataset: Name on the Hub.
        config: Its configuration; empty for the only one.
        split: Name of the split.
        commit: The commit that `resolved` returned.

    Yields:
        Record batches of one schema.

    Raises:
        UserError: If split or configuration does not exist, or the connection fails.
    """
    datasets = _datasets()
    with explained(dataset, commit):
        streamed = datasets.load_dataset(
            dataset, name=config or None, split=split, revision=commit, streaming=True, token=_token()
        )
        features = streamed.features
        schema = features.arrow_schema.remove_metadata() if features else None
        try:
            for table in streamed.with_format("arrow").iter(batch_size=ROWS):
                table = table.replace_schema_metadata(None)
                schema = schema or table.schema
                yield from table.select(schema.names).cast(schema).combine_chunks().to_batches()
        except (TypeError, pa.ArrowInvalid) as error:  # where the dataset declares no types, those of its first rows
            if isinstance(error, pa.ArrowInvalid) and "truncated" not in str(error):
                raise
            raise _changed_type(dataset, commit, schema, error) from error


@contextmanager
def explained(dataset: str, revision: str) -> Iterator[None]:
    """Turns the Hub libraries' errors into messages that say what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{dataset} is gated: accept its terms on its page, then give the step a token of that account as HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"there is no dataset {dataset!r} on the Hub, or it is private: check hf_dataset, or give the step a token "
            "as HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{dataset} has no revision {revision!r}: hf_revision is a branch, tag or commit") from None
    except errors.HFValidationError as error:
        raise UserError(f"hf_dataset = {dataset!r} is no name of a dataset: {error}") from None
    except errors.HfHubHTTPError as error:
        raise UserError(f"the Hub did not give {dataset}: {error}") from None
    except (ValueError, RuntimeError) as error:  # datasets: unknown split or configuration, a script, no data files
        raise UserError(f"{dataset} could not be loaded: {_first_lines(error)}") from error
    except OSError as error:
        raise UserError(f"the Hub could not be reached for {dataset}: {error}") from error
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "aiohttp", "datasets")):
            raise
        raise UserError(f"{dataset} could not be read from the Hub: {_first_lines(error)}") from error


def _changed_type(dataset: str, commit: str, schema: pa.Schema | None, error: Exception) -> UserError:
    unknown = [field.name for field in schema or [] if pa.types.is_null(field.type)]
    empty = f" ({', '.join(map(repr, unknown))} had nothing but null)" if unknown else ""
    return UserError(
        f"{dataset}: rows further on do not have the types of the first ones{empty}: {_first_lines(error)}. The "
        "dataset declares no types; have its files read instead, for which all rows count: source_type = 'jsonl_path', "
        f"jsonl_path = 'hf://datasets/{dataset}@{commit}/' and the files' names, such as *.jsonl"
    )


def _datasets() -> Any:
    """Imports the library without torch, which it would load where that is installed."""
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


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
