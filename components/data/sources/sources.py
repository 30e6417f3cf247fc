"""Opening a file wherever it lies: local paths and `https://`, `s3://`, `gs://`, `hf://` URLs, gzip and zstd."""

import contextlib
import hashlib
import io
import shutil
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from llm_finetune.components.data.sources import web
from llm_finetune.components.shared.card import is_disk_full
from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.urls import without_secrets

COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
# Refused by their first bytes, so that the message can say what they are.
ARCHIVES = {
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
# Each has error classes of its own.
LIBRARIES = ("aiohttp", "fsspec", "requests", "urllib3", "botocore", "s3fs", "gcsfs", "google.", "huggingface_hub",
             "httpx", "httpcore")  # fmt: skip
RANGE_BYTES = 1 << 20  # least part of a remote file that is asked for


class Source:
    """One file to read, named for messages without passwords and signatures."""

    def __init__(self, location: str, etag: str = "") -> None:
        """Names the file.

        Args:
            location: A path or a URL.
            etag: Its ETag, where a listing has just told it.
        """
        self._etag = etag
        parts = urllib.parse.urlsplit(location)
        self.is_web = parts.scheme in ("http", "https")
        self.is_local = len(parts.scheme) < 2 or parts.scheme == "file"
        self.location = urllib.request.url2pathname(parts.path) if parts.scheme == "file" else location
        self.name = self.location if self.is_local else without_secrets(location)
        self.revision = ""

    @property
    def suffix(self) -> str:
        """The file name's ending in lower case, without that of a compression."""
        path = Path(self.location if self.is_local else urllib.parse.urlsplit(self.location).path)
        return path.with_suffix("").suffix.lower() if path.suffix in (".gz", ".zst") else path.suffix.lower()

    @contextlib.contextmanager
    def stream(self) -> Iterator[pa.NativeFile]:
        """Opens the file for reading from its beginning, unpacked.

        Yields:
            A stream of the content; a short or damaged file raises instead of ending.

        Raises:
            UserError: If it can't be opened or read.
        """
        with self.explained(), self._raw() as raw:
            reader = Checked(raw, self)
            first = reader.peek(8)
            for magic, meaning in ARCHIVES.items():
                if first.startswith(magic):
                    raise UserError(
                        f"{self.name} is {meaning}; give JSON Lines, JSON, CSV or Parquet, plain, .gz or .zst"
                    )
            compression = next((name for magic, name in COMPRESSIONS.items() if first.startswith(magic)), None)
            plain = pa.PythonFile(reader, mode="r")
            yield pa.CompressedInputStream(plain, compression) if compression else plain

    @contextlib.contextmanager
    def seekable(self) -> Iterator[Any]:
        """Opens the file so that it can be read at any place, without fetching all of it where the server allows that.

        Yields:
            A binary file object.
        """
        with self.explained(), contextlib.ExitStack() as stack:
            if self.is_local:
                yield stack.enter_context(open(self.location, "rb"))
            elif not self.is_web:
                yield stack.enter_context(opened(self.location))
            else:
                file = self._web_file()
                stack.callback(file.close)
                if file.has_ranges:
                    yield io.BufferedReader(web.Seekable(file), RANGE_BYTES)
                else:
                    yield stack.enter_context(open(stack.enter_context(self.fetched("")).location, "rb"))

    @contextlib.contextmanager
    def fetched(self, sha256: str) -> Iterator["Source"]:
        """Brings the whole file here and checks it before anything of it is read.

        Args:
            sha256: The checksum it must have; empty for any.

        Yields:
            A local source with the same name for messages.

        Raises:
            UserError: If the checksum differs.
        """
        with self.explained(), tempfile.TemporaryDirectory() as folder:
            local = Source(self.location)
            if not self.is_local:
                path = Path(folder) / (Path(urllib.parse.urlsplit(self.location).path).name or "data")
                with self._raw(bool(sha256)) as raw, path.open("wb") as file:
                    shutil.copyfileobj(Checked(raw, self), file, 1 << 20)
                local = Source(str(path))
                local.name = self.name
            if sha256:
                with open(local.location, "rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != sha256.lower().removeprefix("sha256:"):
                    raise UserError(
                        f"{self.name} has sha256 {found}, not {sha256}: the file changed, or is not the one meant"
                    )
                local.revision = f"sha256:{found}"
            yield local

    def etag(self) -> str:
        """Returns what tells a file from what it was before: its ETag, else when it was changed; empty if nothing does.

        Raises:
            UserError: If the file is not there or not in reach.
        """
        if self._etag:
            return self._etag
        with self.explained():
            if self.is_local:
                status = Path(self.location).stat()
                return f"{status.st_size}-{status.st_mtime_ns}"
            if self.is_web:
                with contextlib.closing(self._web_file(size_may_be_unknown=True)) as file:
                    return file.revision or file.last_modified
            system, path = file_system(self.location)
            system.invalidate_cache()
            return etag_of(system.info(path))

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turns what can go wrong while reading into a message that names the file."""
        try:
            yield
        except (UserError, pa.ArrowInvalid, MemoryError):
            raise
        except FileNotFoundError:
            raise UserError(f"{self.name} does not exist{self._beside()}") from None
        except IsADirectoryError:
            raise UserError(f"{self.name} is a folder; name its files, such as {self.name}/*.jsonl") from None
        except PermissionError as error:
            raise UserError(f"{self.name} may not be read: {error}. Check the path and the credentials") from None
        except Exception as error:
            if is_disk_full(error) or not _is_about_reading(error):
                raise
            raise UserError(f"{self.name} could not be read: {_reason(error)}") from error

    @contextlib.contextmanager
    def _raw(self, size_may_be_unknown: bool = False) -> Iterator[BinaryIO | web.WebFile]:
        if self.is_local:
            with open(self.location, "rb") as file:
                yield file
        elif self.is_web:
            with contextlib.closing(self._web_file(size_may_be_unknown)) as web_file:
                yield web_file
        else:
            with opened(self.location) as file:
                self.revision = etag_of(getattr(file, "details", None) or {})
                yield file

    def _web_file(self, size_may_be_unknown: bool = False) -> web.WebFile:
        file = web.WebFile(self.location, self.name, size_may_be_unknown)
        self.revision = file.revision
        return file

    def _beside(self) -> str:
        folder = Path(self.location).parent
        if not self.is_local:
            return ": check the address, and HF_TOKEN or the storage credentials if it is not public"
        if not folder.is_dir():
            return f": there is no folder {folder}"
        return nearest(Path(self.location).name, sorted(file.name for file in folder.iterdir()))


class Checked:
    """A reader that can look at the first bytes and raises when a stream ends before its announced length."""

    def __init__(self, raw: BinaryIO | web.WebFile, source: Source) -> None:
        """Wraps a stream.

        Args:
            raw: The open file.
            source: Where it comes from.
        """
        self.raw, self.source = raw, source
        self.closed = False
        self._ahead = b""
        self._done = 0
        self._size = getattr(raw, "size", None)

    def peek(self, count: int) -> bytes:
        """Returns the first bytes without consuming them."""
        while len(self._ahead) < count and (more := self._next(count - len(self._ahead))):
            self._ahead += more
        return self._ahead

    def read(self, count: int = -1) -> bytes:
        """Returns bytes; empty only at the true end."""
        if self._ahead:
            ahead, self._ahead = self._ahead, b""
            return ahead
        return self._next(count)

    def _next(self, count: int) -> bytes:
        data = self.raw.read(count)
        self._done += len(data)
        if not data and count and self._size is not None and self._done < self._size:
            raise UserError(
                f"{self.source.name}: the connection ended after {self._done:,} of {self._size:,} bytes. "
                "Nothing was kept; run the step again"
            )
        return data

    def close(self) -> None:
        """Does nothing: who opened the stream closes it."""


def opened(location: str) -> Any:
    """Opens a file of an object store or of the Hub."""
    system, path = file_system(location)
    return system.open(path, "rb")


def file_system(location: str) -> tuple[Any, str]:
    """Returns the file system behind a URL, and the path in it.

    Raises:
        UserError: If the scheme is unknown.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(location)
    except (ValueError, ImportError) as error:
        scheme = location.partition("://")[0]
        raise UserError(f"{scheme}:// is not a place this card can read from ({error})") from None


def etag_of(details: Mapping[str, Any]) -> str:
    """Returns a remote file's ETag from what its store tells of it: S3, Google Cloud Storage, the Hub's Git."""
    return str(next((details[name] for name in ("ETag", "etag", "blob_id") if details.get(name)), "")).strip('"')


def _is_about_reading(error: Exception) -> bool:
    """Tells errors of storage from mistakes in this program."""
    return isinstance(error, OSError | TimeoutError | EOFError) or type(error).__module__.startswith(LIBRARIES)


def _reason(error: Exception) -> str:
    status = getattr(error, "status", None)
    if status in (401, 403):
        return f"the server answered {status}: it wants credentials"
    if status:
        return f"the server answered {status}"
    return f"{error}" or type(error).__name__
