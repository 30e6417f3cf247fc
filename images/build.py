"""Builds and pushes the images: `python -m images.build --help`, or `make images`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from images import builders, lock, pin, pip_settings
from llm_finetune.components.shared.card import PACKAGE_VERSION
from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.files import write_text
from llm_finetune.components.shared.images import DEFAULT_REGISTRY, PUSHED_IMAGES

ROOT = lock.ROOT
FAMILIES = ("control", "data", "train")
TORCH = ("cuda", "cpu")


def build(
    families: tuple[str, ...],
    builder: builders.Builder,
    registry: str,
    tag: str,
    torch: str,
    base: str = "",
    options: tuple[str, ...] = (),
) -> dict[str, str]:
    """Builds images and tags them after all of them have been built.

    Args:
        families: Image families.
        builder: Builder to use.
        registry: Prefix of the image names.
        tag: Tag.
        torch: Build of PyTorch in the train image: cuda or cpu.
        base: Base image; empty uses that of the Containerfiles.
        options: Additional options of the builder.

    Returns:
        Image references by family.

    Raises:
        UserError: If a lock does not match pyproject.toml, or a build fails.
    """
    lock.check()
    settings = pip_settings.read()
    arguments = {"VERSION": PACKAGE_VERSION, "REVISION": _git("rev-parse", "HEAD"), "SOURCE": _source()}
    arguments |= {"BASE": base} if base else {}
    with _private_file(settings.text) as pip_conf, _temporary_tags(builder) as temporary:
        secrets = {"pip": pip_conf} | ({"certificates": settings.certificates} if settings.certificates else {})
        for family in families:
            temporary[family] = f"{registry}/{family}:{tag}-unfinished-{os.getpid()}"
            build_arguments = arguments | ({"TORCH": torch} if family == "train" else {})
            containerfile = ROOT / "images" / family / "Containerfile"
            builder.build(containerfile, ROOT, temporary[family], build_arguments, secrets, settings.folders, options)
        references = {family: f"{registry}/{family}:{tag}" for family in families}
        for family, reference in references.items():
            builder.tag(temporary[family], reference)
    return references


@contextmanager
def _temporary_tags(builder: builders.Builder) -> Iterator[dict[str, str]]:
    """Yields a mapping for temporary tags and removes these tags at the end."""
    names: dict[str, str] = {}
    try:
        yield names
    finally:
        for name in names.values():
            builder.remove(name)


@contextmanager
def _private_file(text: str) -> Iterator[Path]:
    """Writes pip's settings, which may contain a password, to a file that only the user can read."""
    path = ROOT / "build" / f"pip-{os.getpid()}.conf"
    path.parent.mkdir(exist_ok=True)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
            stream.write(text)
        yield path
    finally:
        path.unlink(missing_ok=True)


def push(builder: builders.Builder, references: dict[str, str], file: Path = PUSHED_IMAGES) -> dict[str, str]:
    """Pushes images and writes their digests for `make compile`.

    Args:
        builder: Builder to use.
        references: Image references by family.
        file: File with the digests.

    Returns:
        References with digests, by family.

    Raises:
        UserError: If a push fails; the file is not changed then.
    """
    pushed = {family: f"{name.rpartition(':')[0]}@{builder.push(name)}" for family, name in references.items()}
    known = json.loads(file.read_text()) if file.is_file() else {}
    others = known["images"] if known.get("version") == PACKAGE_VERSION else {}
    file.parent.mkdir(exist_ok=True)
    write_text(file, json.dumps({"version": PACKAGE_VERSION, "images": others | pushed}, indent=2) + "\n")
    return pushed


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else ""


def _source() -> str:
    """Returns the URL of the repository without credentials."""
    address = _git("remote", "get-url", "origin")
    scheme, separator, rest = address.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if separator else address


def main(
    families: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(FAMILIES)}; default: all.")] = None,
    registry: Annotated[str, typer.Option(help="Prefix of the image names.")] = DEFAULT_REGISTRY,
    tag: Annotated[str, typer.Option(help="Tag.")] = PACKAGE_VERSION,
    torch: Annotated[str, typer.Option(help="PyTorch of the train image: cuda (also runs on CPUs) or cpu.")] = "cuda",
    builder: Annotated[str, typer.Option(help="docker, podman or buildah; default: the first installed one.")] = "",
    base: Annotated[str, typer.Option(help="Base image, such as a copy in a mirror.")] = "",
    push_them: Annotated[bool, typer.Option("--push", help="Push, and write digests for `make compile`.")] = False,
    pin_bases: Annotated[bool, typer.Option("--pin", help="First pin the base image to its digest.")] = False,
    option: Annotated[list[str] | None, typer.Option(help="Additional option of the builder; may be repeated.")] = None,
    locks: Annotated[bool, typer.Option("--locks", help="Only update the locks from pyproject.toml.")] = False,
) -> None:
    """Build the images of the cards."""
    try:
        if locks:
            for path in lock.write():
                print(path)
            return
        selected = tuple(families or FAMILIES)
        for name in selected:
            _check_choice("family", name, FAMILIES)
        _check_choice("TORCH", torch, TORCH)
        tool = builders.find(builder)
        if pin_bases:
            print(f"base image pinned: {pin.write()}")
        references = build(selected, tool, registry.rstrip("/"), tag, torch, base, tuple(option or ()))
        for reference in references.values():
            print(f"{reference}  {tool.size(reference)}")
        if push_them:
            for reference in push(tool, references).values():
                print(reference)
            print(f"`make compile` now refers to these digests ({PUSHED_IMAGES.relative_to(ROOT)})")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("stopped; no image was tagged", file=sys.stderr)
        raise typer.Exit(130) from None


def _check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{what} = {value!r} is not one of {', '.join(known)}{nearest(value, known)}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    typer.run(main)
