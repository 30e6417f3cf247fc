"""Where a base model comes from: a folder of this machine, or a repository of the Hub at one commit."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from llm_finetune.components.model.load_model.disk import check_space
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import ensure_writable
from llm_finetune.components.shared.modeling.base_model import (
    INDEX,
    SINGLE,
    DownloadLines,
    fetch,
    first_line,
    hub_errors,
    hub_token,
    small_files,
)

PICKLE = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")


@dataclass(frozen=True)
class Source:
    """A base model whose small files are at hand.

    Attributes:
        name: Hub id, or the folder's absolute path.
        revision: Commit; empty for a folder.
        folder: Where the small files lie; for a folder, the weights too.
        small: Names of configuration, tokenizer, licence and model card.
        weights: Names of the safetensors files.
        size_bytes: Bytes of all of them.
    """

    name: str
    revision: str
    folder: Path
    small: tuple[str, ...]
    weights: tuple[str, ...]
    size_bytes: int

    @property
    def local(self) -> bool:
        """Whether it is a folder of this machine."""
        return not self.revision

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files."""
        return (*self.small, *self.weights)


def find(model_name: str, revision: str, cache_dir: str) -> Source:
    """Finds a base model and brings its small files here.

    Args:
        model_name: Hub id or folder.
        revision: Branch, tag or commit of a Hub id; empty takes the default branch. A folder's is checked elsewhere.
        cache_dir: Hub cache.

    Returns:
        The source; its weights have not been touched.

    Raises:
        UserError: If there is no such model, it is out of reach, or it has no safetensors weights.
    """
    folder = Path(model_name).expanduser()
    if folder.is_dir():
        return _find_folder(folder.resolve())
    if "://" in model_name:
        raise UserError(
            f"model_name = {model_name!r} is a URL; it takes a Hub id (owner/name) or a folder, so mount it"
        )
    if model_name.startswith(("/", ".", "~")) or model_name.count("/") > 1:
        raise UserError(f"model_name = {model_name!r}: there is no such folder")
    try:
        validate_repo_id(model_name)
    except HFValidationError as error:
        raise UserError(
            f"model_name = {model_name!r} is neither a folder nor a Hub id (owner/name): {error}"
        ) from error
    if not constants.HF_HUB_OFFLINE:  # a volume that was filled elsewhere may be read-only
        ensure_writable(cache_dir, f"cache_dir = {cache_dir!r}")
    return _find_on_hub(model_name, revision, cache_dir)


def commit_of(model_name: str, revision: str) -> str:
    """Returns the commit that a revision of a Hub model means now; empty for a folder, and where the Hub is shut out.

    Args:
        model_name: Hub id or folder.
        revision: Branch, tag or commit; empty for the default branch.

    Raises:
        UserError: If there is no such model or revision, or the Hub is out of reach.
    """
    folder = model_name.startswith(("/", ".", "~")) or Path(model_name).is_dir()
    if folder or constants.HF_HUB_OFFLINE:
        return ""
    with hub_errors(model_name, revision):
        return HfApi(token=hub_token()).model_info(model_name, revision=revision or None).sha or ""


def fetch_weights(source: Source, cache_dir: str) -> Path:
    """Returns a folder that holds a Hub model's weights too, after making sure that they fit.

    Args:
        source: A source on the Hub.
        cache_dir: Hub cache.

    Returns:
        The snapshot's folder in the cache.
    """
    missing = [file for file in source.weights if not (source.folder / file).exists()]
    if missing:
        needed = _missing_bytes(source, missing, cache_dir)
        check_space(cache_dir, needed, f"cache_dir = {cache_dir!r}")
        print(f"downloading {len(missing)} weight files of {source.name}, {needed / 1e9:.2f} GB", flush=True)
    return fetch(source.name, source.revision, source.files, cache_dir)


def licence(source: Source) -> str:
    """Returns the licence that the model card names, or `unknown`."""
    if "README.md" not in source.small:
        return "unknown"
    try:
        data = ModelCard.load(source.folder / "README.md", ignore_metadata_errors=True).data
    except ValueError:
        return "unknown"
    named = data.get("license_name") if data.license in (None, "other") else data.license
    return str(named or data.license or "unknown")


def _find_folder(folder: Path) -> Source:
    names = [file.name for file in folder.iterdir() if file.is_file()]
    if "config.json" not in names and "adapter_config.json" in names:
        raise UserError(f"{folder} is an adapter, not a base model: give the model that it was trained on")
    weights = _weights(str(folder), names, folder)
    small = small_files(names)
    lost = [name for name in weights if name not in names]
    if lost:
        raise UserError(f"{folder} is not whole: {INDEX} names {', '.join(sorted(lost)[:5])}, which is not there")
    size = sum((folder / name).stat().st_size for name in (*small, *weights))
    return Source(str(folder), "", folder, tuple(small), tuple(weights), size)


def _find_on_hub(name: str, revision: str, cache_dir: str) -> Source:
    sizes = _list_hub(name, revision)
    if sizes is None:  # out of reach: what an earlier run brought here may do
        return _find_in_cache(name, revision, cache_dir)
    if "adapter_config.json" in sizes and "config.json" not in sizes:
        raise UserError(f"{name} is an adapter, not a base model: give the model that it was trained on")
    small = small_files(sizes)
    if not any(file in sizes for file in (SINGLE, INDEX)):
        _weights(name, sizes, Path())  # explains what there is instead
    # By name, not by commit: the cache then remembers the commit of the name, for a run without network.
    folder = fetch(name, revision or constants.DEFAULT_REVISION, small, cache_dir)
    weights = _weights(name, sizes, folder)
    size = sum(sizes.get(file, 0) for file in (*small, *weights))
    return Source(name, folder.name, folder, tuple(small), tuple(weights), size)


def _list_hub(name: str, revision: str) -> dict[str, int] | None:
    """Returns the size of every file, or None if the Hub is out of reach."""
    if constants.HF_HUB_OFFLINE:
        return None
    with hub_errors(name, revision):
        try:
            info = HfApi(token=hub_token()).model_info(name, revision=revision or None, files_metadata=True)
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            print(f"{constants.ENDPOINT} is out of reach ({first_line(error)}); looking into the cache", flush=True)
            return None
    return {file.rfilename: file.size or 0 for file in info.siblings or []}


def _find_in_cache(name: str, revision: str, cache_dir: str) -> Source:
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
    weights = _weights(name, names, folder)
    small = small_files(names)
    size = sum((folder / file).stat().st_size for file in (*small, *weights) if (folder / file).exists())
    return Source(name, folder.name, folder, tuple(small), tuple(weights), size)


def _weights(name: str, names: Iterable[str], folder: Path) -> list[str]:
    """Returns the safetensors files that make up the model; other weight files in the folder are passed over."""
    names = list(names)
    if SINGLE in names:
        return [SINGLE]
    if INDEX in names:
        return sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    pickled = sorted(file for file in names if file.endswith(PICKLE))
    if pickled:
        raise UserError(
            f"{name} has its weights only as {pickled[0]}. Such files are pickle, which can run any code when they are "
            "read, so only safetensors are taken: look for a revision that has them (refs/pr/…), or convert the model"
        )
    packed = sorted(file for file in names if file.endswith(".gguf"))
    if packed:
        raise UserError(
            f"{name} has its weights only as {packed[0]} (llama.cpp's format): take the safetensors original"
        )
    raise UserError(
        f"{name} holds no weights: neither {SINGLE} nor {INDEX} (found: {', '.join(sorted(names)[:8]) or 'nothing'})"
    )


def _missing_bytes(source: Source, missing: list[str], cache_dir: str) -> int:
    with hub_errors(source.name, source.revision):
        files = snapshot_download(
            source.name,
            revision=source.revision,
            allow_patterns=missing,
            cache_dir=cache_dir,
            token=hub_token(),
            tqdm_class=DownloadLines,
            dry_run=True,
        )
    return sum(file.file_size or 0 for file in files if file.will_download)
