"""Locates a base model: a local folder, or a commit of a Hub repository."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from llm_finetune.components.model.load_model.disk import check_space
from llm_finetune.components.shared.errors import UserError, first_line
from llm_finetune.components.shared.files import ensure_writable
from llm_finetune.components.shared.modeling.base_model import (
    INDEX,
    SINGLE,
    DownloadProgress,
    download,
    hub_errors,
    hub_token,
    non_weight_files,
)

PICKLE = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")


@dataclass(frozen=True)
class ModelSource:
    """A base model; its files other than weights are on this machine.

    Attributes:
        name: Hub id, or the folder's absolute path.
        revision: Commit; empty for a folder.
        folder: Folder with the files other than weights; for a local model, with the weights too.
        other_files: Names of configuration, tokenizer, licence and model card.
        weights: Names of the safetensors files.
        size_bytes: Bytes of all files.
    """

    name: str
    revision: str
    folder: Path
    other_files: tuple[str, ...]
    weights: tuple[str, ...]
    size_bytes: int

    @property
    def is_local(self) -> bool:
        """Whether it is a local folder."""
        return not self.revision

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files."""
        return (*self.other_files, *self.weights)


def locate(model_name: str, revision: str, cache_dir: str) -> ModelSource:
    """Locates a base model and downloads its files other than weights.

    Args:
        model_name: Hub id or folder.
        revision: Branch, tag or commit of a Hub id; empty for the default branch. Not used for a folder.
        cache_dir: Hub cache.

    Returns:
        The source; its weights are not downloaded yet.

    Raises:
        UserError: If the model does not exist or is unreachable, or it has no safetensors weights.
    """
    folder = Path(model_name).expanduser()
    if folder.is_dir():
        return _find_folder(folder.resolve())
    if "://" in model_name:
        raise UserError(
            f"model_name = {model_name!r} is a URL; use a Hub id (owner/name), or a folder such as a mounted volume"
        )
    if model_name.startswith(("/", ".", "~")) or model_name.count("/") > 1:
        raise UserError(f"model_name = {model_name!r}: the folder does not exist")
    try:
        validate_repo_id(model_name)
    except HFValidationError as error:
        raise UserError(
            f"model_name = {model_name!r} is neither a folder nor a Hub id (owner/name): {error}"
        ) from error
    if not constants.HF_HUB_OFFLINE:  # a volume that was filled elsewhere may be read-only
        ensure_writable(cache_dir, f"cache_dir = {cache_dir!r}")
    return _find_on_hub(model_name, revision, cache_dir)


def download_weights(source: ModelSource, cache_dir: str) -> Path:
    """Downloads a Hub model's weights into the cache if they fit on the disk.

    Args:
        source: A source on the Hub.
        cache_dir: Hub cache.

    Returns:
        The snapshot's folder in the cache.

    Raises:
        UserError: If there is not enough space, or the Hub refuses the download.
    """
    missing = [file for file in source.weights if not (source.folder / file).exists()]
    if missing:
        needed = _count_missing_bytes(source, missing, cache_dir)
        check_space(cache_dir, needed, f"cache_dir = {cache_dir!r}")
        print(f"downloading {len(missing)} weight files of {source.name}, {needed / 1e9:.2f} GB", flush=True)
    return download(source.name, source.revision, source.files, cache_dir)


def read_license(source: ModelSource) -> str:
    """Returns the licence that the model card names, or `unknown`."""
    if "README.md" not in source.other_files:
        return "unknown"
    try:
        data = ModelCard.load(source.folder / "README.md", ignore_metadata_errors=True).data
    except ValueError:
        return "unknown"
    named = data.get("license_name") if data.license in (None, "other") else data.license
    return str(named or data.license or "unknown")


def _find_folder(folder: Path) -> ModelSource:
    names = [file.name for file in folder.iterdir() if file.is_file()]
    if "config.json" not in names and "adapter_config.json" in names:
        raise UserError(f"{folder} is an adapter, not a base model: set model_name to the model that it was trained on")
    weights = _weight_files(str(folder), names, folder)
    other_files = non_weight_files(names)
    missing = [name for name in weights if name not in names]
    if missing:
        raise UserError(f"{folder} is incomplete: {INDEX} names {', '.join(sorted(missing)[:5])}, which does not exist")
    size = sum((folder / name).stat().st_size for name in (*other_files, *weights))
    return ModelSource(str(folder), "", folder, tuple(other_files), tuple(weights), size)


def _find_on_hub(name: str, revision: str, cache_dir: str) -> ModelSource:
    sizes = _list_hub(name, revision)
    if sizes is None:  # unreachable: use what an earlier run has downloaded
        return _find_in_cache(name, revision, cache_dir)
    if "adapter_config.json" in sizes and "config.json" not in sizes:
        raise UserError(f"{name} is an adapter, not a base model: set model_name to the model that it was trained on")
    other_files = non_weight_files(sizes)
    if not any(file in sizes for file in (SINGLE, INDEX)):
        _weight_files(name, sizes, Path())  # raises an error that names the files found
    # By name, not by commit: the cache then records the commit of the name, for runs without network.
    folder = download(name, revision or constants.DEFAULT_REVISION, other_files, cache_dir)
    weights = _weight_files(name, sizes, folder)
    size = sum(sizes.get(file, 0) for file in (*other_files, *weights))
    return ModelSource(name, folder.name, folder, tuple(other_files), tuple(weights), size)


def _list_hub(name: str, revision: str) -> dict[str, int] | None:
    """Returns the size of every file, or None if the Hub is unreachable."""
    if constants.HF_HUB_OFFLINE:
        return None
    with hub_errors(name, revision):
        try:
            info = HfApi(token=hub_token()).model_info(name, revision=revision or None, files_metadata=True)
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            print(f"{constants.ENDPOINT} is unreachable ({first_line(error)}); using the cache", flush=True)
            return None
    return {file.rfilename: file.size or 0 for file in info.siblings or []}


def _find_in_cache(name: str, revision: str, cache_dir: str) -> ModelSource:
    with hub_errors(name, revision):
        try:
            folder = Path(
                snapshot_download(
                    name,
                    revision=revision or None,
                    cache_dir=cache_dir,
                    local_files_only=True,
                    allow_patterns=["config.json"],
                )
            )
        except LocalEntryNotFoundError as error:
            raise LocalEntryNotFoundError(f"not in {cache_dir}") from error
    names = [file.name for file in folder.iterdir()]
    weights = _weight_files(name, names, folder)
    other_files = non_weight_files(names)
    size = sum((folder / file).stat().st_size for file in (*other_files, *weights) if (folder / file).exists())
    return ModelSource(name, folder.name, folder, tuple(other_files), tuple(weights), size)


def _weight_files(name: str, names: Iterable[str], folder: Path) -> list[str]:
    """Returns the model's safetensors files; other weight files in the folder are ignored."""
    names = list(names)
    if SINGLE in names:
        return [SINGLE]
    if INDEX in names:
        return sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    pickled = sorted(file for file in names if file.endswith(PICKLE))
    if pickled:
        raise UserError(
            f"{name} has its weights only as {pickled[0]}. Such files are pickle, which can run any code when loaded, "
            "so only safetensors are accepted: use a revision that has them (refs/pr/…), or convert the model"
        )
    packed = sorted(file for file in names if file.endswith(".gguf"))
    if packed:
        raise UserError(
            f"{name} has its weights only as {packed[0]} (llama.cpp's format): use the original model with safetensors"
        )
    raise UserError(
        f"{name} has no weights: neither {SINGLE} nor {INDEX} (found: {', '.join(sorted(names)[:8]) or 'nothing'})"
    )


def _count_missing_bytes(source: ModelSource, missing: list[str], cache_dir: str) -> int:
    with hub_errors(source.name, source.revision):
        files = snapshot_download(
            source.name,
            revision=source.revision,
            allow_patterns=missing,
            cache_dir=cache_dir,
            token=hub_token(),
            tqdm_class=DownloadProgress,
            dry_run=True,
        )
    return sum(file.file_size or 0 for file in files if file.will_download)
