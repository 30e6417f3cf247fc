"""Builds and pushes images with docker, podman or buildah, whose commands differ in a few options."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llm_finetune.components.shared.errors import UserError, nearest

NAMES = ("docker", "podman", "buildah")

# Patterns in the output of a failed build, and the message for each.
BUILD_FAILURES = {
    r"no space left on device|disk quota exceeded": "no space left in the image store of {builder}: free disk "
    "space, for example with `{builder} {prune}`",
    r"do not match the hashes": "a file from the package index does not match the hash in the lock. If you trust "
    "the index, run `make images-lock`",
    r"no matching distribution found for torch==\S*\+cpu": "the package index has no CPU build of PyTorch: add "
    "PyTorch's CPU index to PIP_EXTRA_INDEX_URL, or build with TORCH=cuda, which also runs on CPUs",
    r"no matching distribution found": "the package index does not have a locked version: check PIP_INDEX_URL",
}
PUSH_FAILURES = {
    r"unauthorized|authentication required|denied|forbidden|\b40[13]\b": "{registry} rejects the push: run "
    "`{builder} login {registry}` with an account with write permission",
    r"connection refused|no such host|network is unreachable|i/o timeout|server misbehaving": "cannot connect to "
    "{registry}: check its name and the network",
    r"http response to https client": "{registry} uses plain HTTP, which only a local registry may use",
}
PRUNE = {"docker": "system prune", "podman": "system prune", "buildah": "rmi --prune"}
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Builder:
    """A builder of images.

    Attributes:
        name: docker, podman or buildah.
    """

    name: str

    def build(
        self,
        containerfile: Path,
        context: Path,
        reference: str,
        arguments: Mapping[str, str],
        secrets: Mapping[str, Path],
        volumes: Iterable[Path] = (),
        options: Iterable[str] = (),
    ) -> None:
        """Builds and tags an image.

        Args:
            containerfile: Containerfile.
            context: Build context.
            reference: Name and tag.
            arguments: Build arguments.
            secrets: Secret files by ID.
            volumes: Folders of this machine, mounted read-only at the same path.
            options: Additional options of the builder.

        Raises:
            UserError: If the build fails.
        """
        command = [self.name, "build", "--file", str(containerfile), "--tag", reference, *options]
        for name, value in arguments.items():
            command += ["--build-arg", f"{name}={value}"]
        for name, path in secrets.items():
            command += ["--secret", f"id={name},src={path}"]
        for path in volumes:
            if self.name == "docker":
                raise UserError(
                    f"pip's settings contain {path}, a local folder, which docker cannot mount in a build. "
                    "Serve it over HTTP, or use BUILDER=buildah or BUILDER=podman"
                )
            command += ["--volume", f"{path}:{path}:ro"]
        self._run([*command, str(context)], f"{self.name} could not build {containerfile}", BUILD_FAILURES)

    def tag(self, reference: str, other: str) -> None:
        """Adds a tag to an image."""
        self._output("tag", reference, other)

    def remove(self, reference: str) -> None:
        """Removes a tag, if it exists, and the image with its last tag."""
        subprocess.run([self.name, "rmi", reference], capture_output=True, check=False)

    def size(self, reference: str) -> str:
        """Returns the uncompressed size of an image, as printed by the builder."""
        return self._output("images", "--format", "{{.Size}}", reference).splitlines()[0]

    def push(self, reference: str) -> str:
        """Pushes an image.

        Args:
            reference: Registry, name and tag.

        Returns:
            Digest of the image in the registry.

        Raises:
            UserError: If the push fails.
        """
        registry = reference.split("/")[0]
        failures = {pattern: message.replace("{registry}", registry) for pattern, message in PUSH_FAILURES.items()}
        what = f"{self.name} could not push {reference}"
        if self.name == "docker":
            output = self._run(["docker", "push", reference], what, failures)
        else:
            with tempfile.NamedTemporaryFile() as digest:
                # docker accepts a local registry without TLS by default.
                plain = ["--tls-verify=false"] if registry.split(":")[0] in ("localhost", "127.0.0.1") else []
                self._run([self.name, "push", *plain, "--digestfile", digest.name, reference], what, failures)
                output = Path(digest.name).read_text()
        digests = DIGEST.findall(output)
        if not digests:
            raise UserError(f"{what}: the output contains no digest")
        return str(digests[-1])

    def _output(self, *arguments: str) -> str:
        result = subprocess.run([self.name, *arguments], capture_output=True, text=True, check=False)
        if result.returncode:
            raise UserError(f"`{self.name} {' '.join(arguments)}` failed: {result.stderr.strip()}")
        return result.stdout

    def _run(self, command: list[str], what: str, failures: Mapping[str, str]) -> str:
        """Runs a command, prints its output, and explains a failure by the last lines."""
        last: deque[str] = deque(maxlen=200)
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                sys.stdout.write(line)
                sys.stdout.flush()
                last.append(line)
        output = "".join(last)
        if process.returncode:
            for pattern, meaning in failures.items():
                if re.search(pattern, output, re.IGNORECASE):
                    raise UserError(f"{what}: {meaning.format(builder=self.name, prune=PRUNE[self.name])}")
            last_line = next((line.strip() for line in reversed(last) if line.strip()), "no output")
            raise UserError(f"{what} (exit {process.returncode}): {last_line}")
        return output


def find(name: str = "") -> Builder:
    """Returns a builder by name, or the first installed one.

    Args:
        name: docker, podman or buildah; empty selects the first installed one.

    Returns:
        The builder.

    Raises:
        UserError: If the name is unknown or the builder is not installed.
    """
    if name and name not in NAMES:
        raise UserError(f"BUILDER = {name!r} is not one of {', '.join(NAMES)}{nearest(name, NAMES)}")
    for candidate in (name,) if name else NAMES:
        if shutil.which(candidate):
            return Builder(candidate)
    wanted = name or "none of docker, podman and buildah"
    raise UserError(f"{wanted} is {'not ' if name else ''}installed; on Debian: apt-get install buildah")
