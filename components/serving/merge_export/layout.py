"""The exported folder: everything that a server needs beside the weights, readable by older readers too."""

import json
import shutil
from collections.abc import Collection, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.base_model import INDEX, non_weight_files

LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.index.json")
# Written by transformers 5 for itself; a 4.x reader fails on the class and ignores or trips over the rest.
OWN_TOKENIZER_KEYS = ("backend", "is_local", "local_files_only")


def empty(folder: Path) -> None:
    """Takes everything out of a folder of ours."""
    shutil.rmtree(folder)
    folder.mkdir()


def add_tokenizer(ft_result: Path, folder: Path) -> None:
    """Puts the tokenizer, its chat template and the generation config of the training beside the weights.

    Tokens that the model has no embedding for, such as a padding token that somebody added without resizing it, are
    left out: vLLM looks up what a client writes, and a single request with such a token would end the server.

    Args:
        ft_result: Folder of the adapter.
        folder: Folder of the merged model, with its config.json.

    Raises:
        UserError: If there is no chat template or no end token, without which the model can't be served.
    """
    names = [file.name for file in ft_result.iterdir() if file.is_file()]
    for name in non_weight_files(names):
        if name not in ("README.md", "config.json", INDEX) and not _legal(name):
            shutil.copyfile(ft_result / name, folder / name)
    tokenizer = _read(folder / "tokenizer_config.json")
    if not any(name.startswith("chat_template.") for name in names) and not tokenizer.get("chat_template"):
        raise UserError(f"{ft_result} holds no chat template, so the model could not answer chat requests")
    if "generation_config.json" not in names or _read(folder / "generation_config.json").get("eos_token_id") in (
        None,
        [],
    ):
        raise UserError(f"{ft_result} holds no generation_config.json with eos_token_id, so the model would never stop")
    for key in OWN_TOKENIZER_KEYS:
        tokenizer.pop(key, None)
    if tokenizer.get("tokenizer_class") in (None, "TokenizersBackend"):
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write(folder / "tokenizer_config.json", _without(tokenizer, _drop_unknown_tokens(folder)))


def add_licence(model_config: Path, folder: Path) -> None:
    """Puts the base model's licence files beside the weights that derive from it."""
    for file in model_config.iterdir():
        if _legal(file.name):
            shutil.copyfile(file, folder / file.name)


def add_adapter(ft_result: Path, folder: Path, base_model: str, revision: str) -> None:
    """Keeps the adapter itself in `adapter/`, with the base model's public name in its configuration."""
    kept = folder / "adapter"
    kept.mkdir()
    for name in ADAPTER:
        shutil.copyfile(ft_result / name, kept / name)
    config = _read(kept / "adapter_config.json")
    _write(kept / "adapter_config.json", config | {"base_model_name_or_path": base_model, "revision": revision or None})


def make_config_readable(folder: Path) -> None:
    """Says the same facts in config.json under the names of older readers, and the end tokens that are generated with.

    transformers 5 writes `rope_parameters` and `dtype` only; a 4.x reader would silently fall back to a rotary base of
    10000 and to float32.
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
    """Rewrites the weights as `pytorch_model*.bin`, one file at a time."""
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


def make_readable_by_others(folder: Path) -> None:
    """Lets other users read the files: safetensors makes its own readable by the owner alone."""
    for file in folder.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


def leftovers(present: Iterable[str], files: Collection[str]) -> list[str]:
    """Returns what an earlier model left at a place, which servers would load beside or instead of the new one.

    Args:
        present: Names of the files there; of folders, only `adapter/` is looked into: others may hold other models.
        files: Names of the new model's files.

    Returns:
        Names of weights, indexes and adapters that are not the new model's, sorted.
    """
    own = (name for name in present if name.rpartition("/")[0] in ("", "adapter") and name not in files)
    return sorted(name for name in own if any(fnmatch(name.rpartition("/")[2], of) for of in (*WEIGHTS, *ADAPTER)))


def weight_bytes(folder: Path) -> int:
    """Returns the bytes of the weights."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))


def _drop_unknown_tokens(folder: Path) -> set[str]:
    """Takes added tokens without an embedding out of tokenizer.json, and returns them."""
    config, tokenizer = _read(folder / "config.json"), _read(folder / "tokenizer.json")
    known = config.get("vocab_size") or config["text_config"]["vocab_size"]
    added = tokenizer.get("added_tokens") or []
    dropped = {token["content"] for token in added if token["id"] >= known}
    if dropped:
        tokenizer["added_tokens"] = [token for token in added if token["content"] not in dropped]
        _write(folder / "tokenizer.json", tokenizer)
        print(f"left out tokens that the model has no embedding for: {', '.join(sorted(dropped))}", flush=True)
    return dropped


def _without(value: Any, dropped: Collection[str]) -> Any:
    """Returns settings of a tokenizer without what names a dropped token; loading would add the token again."""

    def names(part: Any) -> bool:
        content = part.get("content") if isinstance(part, dict) else part
        return isinstance(content, str) and content in dropped

    if isinstance(value, dict):
        return {key: _without(part, dropped) for key, part in value.items() if not names(part)}
    return [_without(part, dropped) for part in value if not names(part)] if isinstance(value, list) else value


def _pickle_name(name: str) -> str:
    return name.replace("model", "pytorch_model", 1).removesuffix(".safetensors") + ".bin"


def _legal(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in LEGAL)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
