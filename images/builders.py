"""docker, podman and buildah, as far as building and pushing go: their commands are the same but for a few options."""

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

# What a builder's last lines say, and what that means for the person who reads it.
BUILD_FAILURES = {
    r"no space left on device|disk quota exceeded": "no space left where {builder} keeps its images: free some, "
    "for example with `{builder} {prune}`",
    r"do not match the hashes": "the package index gives another file than the lock holds. If you trust that "
    "index, run `make images-lock`",
    r"no matching distribution found for torch==\S*\+cpu": "the package index has no CPU build of PyTorch: name "
    "PyTorch's own index for CPUs in PIP_EXTRA_INDEX_URL, or build with TORCH=cuda, which runs on CPUs too",
    r"no matching distribution found": "the package index lacks a locked version: is PIP_INDEX_URL the right one?",
}
PUSH_FAILURES = {
    r"unauthorized|authentication required|denied|forbidden|\b40[13]\b": "{registry} refuses the push: log in with "
    "`{builder} login {registry}` with an account that may write there",
    r"connection refused|no such host|network is unreachable|i/o timeout|server misbehaving": "{registry} cannot be "
    "reached: is the name right, and the network there?",
    r"http response to https client": "{registry} speaks plain http, which only a registry on this machine may",
}
PRUNE = {"docker": "system prune", "podman": "system prune", "buildah": "rmi --prune"}
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Builder:
    """A program that builds images.

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
        """Builds an image and names it, or leaves nothing under that name.

        Args:
            containerfile: How.
            context: Folder that its COPY lines read.
            reference: Name and tag.
            arguments: Build arguments.
            secrets: Files that the build may read and no layer keeps, by name.
            volumes: Folders of this machine that the build may read under their own path.
            options: Further options of the builder.

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
                    f"pip is set to read {path}, a folder of this machine, which docker cannot give to a build. "
                    "Serve it over http, or use BUILDER=buildah or BUILDER=podman"
                )
            command += ["--volume", f"{path}:{path}:ro"]
        self._run([*command, str(context)], f"{self.name} could not build {containerfile}", BUILD_FAILURES)

    def tag(self, reference: str, other: str) -> None:
        """Gives an image a second name."""
        self._output("tag", reference, other)

    def remove(self, reference: str) -> None:
        """Takes a name from an image, if it has it; the image goes with its last name."""
        subprocess.run([self.name, "rmi", reference], capture_output=True, check=False)

    def size(self, reference: str) -> str:
        """Returns an image's size, uncompressed, as the builder shows it."""
        return self._output("images", "--format", "{{.Size}}", reference).splitlines()[0]

    def push(self, reference: str) -> str:
        """Pushes an image.

        Args:
            reference: Name and tag; the name begins with the registry.

        Returns:
            The digest under which the registry holds it.

        Raises:
            UserError: If the registry does not take it.
        """
        registry = reference.split("/")[0]
        failures = {pattern: said.replace("{registry}", registry) for pattern, said in PUSH_FAILURES.items()}
        what = f"{self.name} could not push {reference}"
        if self.name == "docker":
            said = self._run(["docker", "push", reference], what, failures)
        else:
            with tempfile.NamedTemporaryFile() as digest:
                # docker takes a registry on this machine without TLS by itself.
                plain = ["--tls-verify=false"] if registry.split(":")[0] in ("localhost", "127.0.0.1") else []
                self._run([self.name, "push", *plain, "--digestfile", digest.name, reference], what, failures)
                said = Path(digest.name).read_text()
        found = DIGEST.findall(said)
        if not found:
            raise UserError(f"{what}: it named no digest")
        return str(found[-1])

    def _output(self, *arguments: str) -> str:
        result = subprocess.run([self.name, *arguments], capture_output=True, text=True, check=False)
        if result.returncode:
            raise UserError(f"`{self.name} {' '.join(arguments)}` failed: {result.stderr.strip()}")
        return result.stdout

    def _run(self, command: list[str], what: str, failures: Mapping[str, str]) -> str:
        """Runs a command in view of the user; what it said last tells why it failed."""
        last: deque[str] = deque(maxlen=200)
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                sys.stdout.write(line)
                sys.stdout.flush()
                last.append(line)
        said = "".join(last)
        if process.returncode:
            for pattern, meaning in failures.items():
                if re.search(pattern, said, re.IGNORECASE):
                    raise UserError(f"{what}: {meaning.format(builder=self.name, prune=PRUNE[self.name])}")
            ends = next((line.strip() for line in reversed(last) if line.strip()), "it said nothing")
            raise UserError(f"{what} (exit {process.returncode}): {ends}")
        return said


def find(name: str = "") -> Builder:
    """Returns the builder that is asked for, or the first that is there.

    Args:
        name: docker, podman or buildah; empty takes the first one that is installed.

    Returns:
        The builder.

    Raises:
        UserError: If it is none of them, or not installed.
    """
    if name and name not in NAMES:
        raise UserError(f"BUILDER = {name!r} is none of {', '.join(NAMES)}{nearest(name, NAMES)}")
    for candidate in (name,) if name else NAMES:
        if shutil.which(candidate):
            return Builder(candidate)
    wanted = name or "none of docker, podman and buildah"
    raise UserError(f"{wanted} is {'not ' if name else ''}installed; on Debian: apt-get install buildah")
