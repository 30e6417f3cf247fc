"""Completes the exported folder: tokenizer, license, adapter, and keys for older versions of transformers."""

import json
import shutil
from collections.abc import Collection, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.base_model import INDEX, non_weight_files

LICENSE_PATTERNS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.index.json")
# Written by transformers 5; transformers 4 fails on the class and does not support the other keys.
TRANSFORMERS_5_KEYS = ("backend", "is_local", "local_files_only")


def clear_folder(folder: Path) -> None:
    """Deletes the content of a folder."""
    shutil.rmtree(folder)
    folder.mkdir()


def add_tokenizer(ft_result: Path, folder: Path) -> None:
    """Copies the tokenizer, its chat template and the generation config of the training.

    Tokens without an embedding, such as an added padding token, are removed: a request that contains the text of such
    a token would crash vLLM.

    Args:
        ft_result: Folder of the adapter.
        folder: Folder of the merged model, with its config.json.

    Raises:
        UserError: If the chat template or the end-of-sequence token is missing, which serving needs.
    """
    names = [file.name for file in ft_result.iterdir() if file.is_file()]
    for name in non_weight_files(names):
        if name not in ("README.md", "config.json", INDEX) and not _is_license_file(name):
            shutil.copyfile(ft_result / name, folder / name)
    tokenizer = _read(folder / "tokenizer_config.json")
    if not any(name.startswith("chat_template.") for name in names) and not tokenizer.get("chat_template"):
        raise UserError(f"{ft_result} has no chat template, which chat requests need")
    if "generation_config.json" not in names or _read(folder / "generation_config.json").get("eos_token_id") in (
        None,
        [],
    ):
        raise UserError(
            f"{ft_result} has no generation_config.json with eos_token_id, without which generation never stops"
        )
    for key in TRANSFORMERS_5_KEYS:
        tokenizer.pop(key, None)
    if tokenizer.get("tokenizer_class") in (None, "TokenizersBackend"):
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write(folder / "tokenizer_config.json", _remove_tokens(tokenizer, _drop_unknown_tokens(folder)))


def add_license_files(model_config: Path, folder: Path) -> None:
    """Copies the license files of the base model, which apply to the merged weights."""
    for file in model_config.iterdir():
        if _is_license_file(file.name):
            shutil.copyfile(file, folder / file.name)


def add_adapter(ft_result: Path, folder: Path, base_model: str, revision: str) -> None:
    """Copies the adapter to `adapter/`, with the public name of the base model in its configuration."""
    target = folder / "adapter"
    target.mkdir()
    for name in ADAPTER_FILES:
        shutil.copyfile(ft_result / name, target / name)
    config = _read(target / "adapter_config.json")
    _write(
        target / "adapter_config.json", config | {"base_model_name_or_path": base_model, "revision": revision or None}
    )


def add_legacy_config_keys(folder: Path) -> None:
    """Adds the keys of transformers 4 to config.json, and the token IDs of the generation config.

    transformers 5 writes `rope_parameters` and `dtype` only; without the old keys, transformers 4 would use a rotary
    base of 10000 and float32.
    """
    path = folder / "config.json"
    config = _read(path)
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    config["torch_dtype"] = config["dtype"]
    generation = _read(folder / "generation_config.json")
    for name in ("eos_token_id", "pad_token_id"):
        if generation.get(name) is not None:
            config[name] = generation[name]
    _write(path, config)


def to_pickle(folder: Path) -> None:
    """Converts the weights to `pytorch_model*.bin`, one file at a time."""
    import torch
    from safetensors.torch import load_file

    for file in sorted(folder.glob("*.safetensors")):
        torch.save(load_file(file), folder / _pickle_name(file.name))
        file.unlink()
    index = folder / INDEX
    if index.is_file():
        content = _read(index)
        content["weight_map"] = {key: _pickle_name(name) for key, name in content["weight_map"].items()}
        _write(folder / "pytorch_model.bin.index.json", content)
        index.unlink()


def make_world_readable(folder: Path) -> None:
    """Makes the files readable for all users; safetensors creates files that only the owner can read."""
    for file in folder.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


def stale_weights(present: Iterable[str], files: Collection[str]) -> list[str]:
    """Returns weights of other models at a location, which servers would load with or instead of the new model.

    Args:
        present: Names of the files at the location; of subfolders, only `adapter/` counts.
        files: Names of the files of the new model.

    Returns:
        Sorted names of weights, indexes and adapters that are not in `files`.
    """
    own = (name for name in present if name.rpartition("/")[0] in ("", "adapter") and name not in files)
    return sorted(
        name for name in own if any(fnmatch(name.rpartition("/")[2], of) for of in (*WEIGHT_PATTERNS, *ADAPTER_FILES))
    )


def weight_bytes(folder: Path) -> int:
    """Returns the size of the weights in bytes."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))


def _drop_unknown_tokens(folder: Path) -> set[str]:
    """Removes added tokens without an embedding from tokenizer.json, and returns them."""
    config, tokenizer = _read(folder / "config.json"), _read(folder / "tokenizer.json")
    known = config.get("vocab_size") or config["text_config"]["vocab_size"]
    added = tokenizer.get("added_tokens") or []
    dropped = {token["content"] for token in added if token["id"] >= known}
    if dropped:
        tokenizer["added_tokens"] = [token for token in added if token["content"] not in dropped]
        _write(folder / "tokenizer.json", tokenizer)
        print(f"removed tokens without an embedding: {', '.join(sorted(dropped))}", flush=True)
    return dropped


def _remove_tokens(value: Any, dropped: Collection[str]) -> Any:
    """Removes dropped tokens from the settings of a tokenizer, which would add them again when loaded."""

    def is_dropped(part: object) -> bool:
        content = part.get("content") if isinstance(part, dict) else part
        return isinstance(content, str) and content in dropped

    if isinstance(value, dict):
        return {key: _remove_tokens(part, dropped) for key, part in value.items() if not is_dropped(part)}
    return (
        [_remove_tokens(part, dropped) for part in value if not is_dropped(part)] if isinstance(value, list) else value
    )


def _pickle_name(name: str) -> str:
    return name.replace("model", "pytorch_model", 1).removesuffix(".safetensors") + ".bin"


def _is_license_file(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in LICENSE_PATTERNS)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
