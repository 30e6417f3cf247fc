"""Builds and runs containers on a machine without Docker and without a registry: buildah, podman and a base of our own.

The images of the tests lie in `build/test-images`, apart from those of the machine.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {"buildah": "buildah", "podman": "podman", "runc": "runc", "debootstrap": "debootstrap"}
STANDIN = "localhost/python-standin:bookworm"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
# As in Debian's slim images: nothing reads these in a container.
UNREAD = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/log",
    "var/cache",
    "var/lib/apt/lists",
)

CONTAINERS = """
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


def missing() -> str:
    """Returns what has to be there first, or an empty string."""
    if os.geteuid() != 0:
        return "images are built and run as root here, with a base from debootstrap: run as root"
    absent = [package for program, package in TOOLS.items() if not shutil.which(program)]
    if absent:
        return f"apt-get install -y --no-install-recommends netavark {' '.join(absent)}"
    return ""


@dataclass(frozen=True)
class Engine:
    """A store of images and the settings that buildah and podman use it with."""

    folder: Path

    @classmethod
    def prepare(cls, folder: Path) -> "Engine":
        """Writes the settings."""
        folder.mkdir(parents=True, exist_ok=True)
        graph, run = folder / "graph", folder / "run"
        storage = f'[storage]\ndriver = "overlay"\ngraphroot = "{graph}"\nrunroot = "{run}"\n'
        (folder / "storage.conf").write_text(storage)
        (folder / "containers.conf").write_text(CONTAINERS)
        return cls(folder)

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which buildah and podman work in this store."""
        return {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "BUILDAH_ISOLATION": "chroot",
        }

    def output(self, *command: str) -> str:
        """Runs a command in this store and returns what it prints."""
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{command}: {result.stderr}"
        return result.stdout

    def size(self, image: str) -> int:
        """Returns the bytes of an image, uncompressed."""
        return int(self.output("podman", "image", "inspect", "--format", "{{.Size}}", image))

    def run(self, image: str, *command: str) -> str:
        """Runs a command as a card runs: not root, nothing writable but /tmp, no network, no capabilities."""
        confined = ["--read-only", "--tmpfs", "/tmp", "--user", "10001:0", "--network", "none"]
        confined += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        return self.output("podman", "run", "--rm", *confined, image, *command)

    def standin(self) -> str:
        """Returns the local stand-in of the Containerfiles' base, made from Debian's packages where it is not there yet."""
        present = subprocess.run(["podman", "image", "exists", STANDIN], env=self.environment, check=False)
        if present.returncode:
            with tempfile.TemporaryDirectory(prefix="standin-") as folder:
                packages = "--include=ca-certificates,python3,python3-venv"
                self.output("debootstrap", "--variant=minbase", packages, "bookworm", folder, MIRROR)
                for place in UNREAD:
                    shutil.rmtree(Path(folder) / place, ignore_errors=True)
                for place in ("var/cache/apt/archives/partial", "var/log/apt"):  # apt-get makes neither
                    (Path(folder) / place).mkdir(parents=True, exist_ok=True)
                archive = Path(folder + ".tar")
                try:
                    self.output("tar", "-C", folder, "-cf", str(archive), ".")
                    self.output("podman", "import", str(archive), STANDIN)
                finally:
                    archive.unlink(missing_ok=True)
        return STANDIN

    @contextlib.contextmanager
    def service(self) -> Iterator[str]:
        """Serves Docker's interface from this store.

        Yields:
            The value for DOCKER_HOST.
        """
        with tempfile.TemporaryDirectory(prefix="podman-") as folder:
            address = f"unix://{folder}/podman.sock"
            command = ["podman", "system", "service", "--time", "0", address]
            with (Path(folder) / "log").open("w") as log:
                process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
            try:
                deadline = time.monotonic() + 60
                while not (Path(folder) / "podman.sock").exists():
                    said = (Path(folder) / "log").read_text()
                    assert process.poll() is None and time.monotonic() < deadline, f"podman's service: {said}"
                    time.sleep(0.1)
                yield address
            finally:
                process.terminate()
                process.wait(30)
