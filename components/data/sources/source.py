"""Opens files at local paths and `https://`, `s3://`, `gs://` and `hf://` URLs; decompresses gzip and zstd."""

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
# Unsupported formats, detected by their first bytes for a clear error message.
ARCHIVES = {
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
# Packages whose exceptions are errors of storage.
STORAGE_LIBRARIES = ("aiohttp", "fsspec", "requests", "urllib3", "botocore", "s3fs", "gcsfs", "google.",
                     "huggingface_hub", "httpx", "httpcore")  # fmt: skip
MIN_RANGE_BYTES = 1 << 20  # minimum size of a range request


class Source:
    """A file to read. Its `name` for messages contains no passwords or signatures."""

    def __init__(self, location: str, etag: str = "") -> None:
        """Parses the location.

        Args:
            location: Path or URL.
            etag: ETag of the file, if known from a listing.
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
        """The file name's extension in lower case, without `.gz` and `.zst`."""
        path = Path(self.location if self.is_local else urllib.parse.urlsplit(self.location).path)
        return path.with_suffix("").suffix.lower() if path.suffix in (".gz", ".zst") else path.suffix.lower()

    @contextlib.contextmanager
    def stream(self) -> Iterator[pa.NativeFile]:
        """Opens the file for sequential reading and decompresses it.

        Yields:
            A stream of the content. It raises if the file is truncated or damaged.

        Raises:
            UserError: If the file cannot be opened or read.
        """
        with self.translate_errors(), self._open() as raw:
            reader = LengthCheckedReader(raw, self)
            first = reader.peek(8)
            for magic, meaning in ARCHIVES.items():
                if first.startswith(magic):
                    raise UserError(
                        f"{self.name} is {meaning}; use JSON Lines, JSON, CSV or Parquet, uncompressed, .gz or .zst"
                    )
            compression = next((name for magic, name in COMPRESSIONS.items() if first.startswith(magic)), None)
            plain = pa.PythonFile(reader, mode="r")
            yield pa.CompressedInputStream(plain, compression) if compression else plain

    @contextlib.contextmanager
    def seekable(self) -> Iterator[Any]:
        """Opens the file for random access. It is downloaded as a whole only if the server supports no ranges.

        Yields:
            A binary file object.
        """
        with self.translate_errors(), contextlib.ExitStack() as stack:
            if self.is_local:
                yield stack.enter_context(open(self.location, "rb"))
            elif not self.is_web:
                yield stack.enter_context(open_remote(self.location))
            else:
                file = self._web_file()
                stack.callback(file.close)
                if file.has_ranges:
                    yield io.BufferedReader(web.SeekableWebFile(file), MIN_RANGE_BYTES)
                else:
                    yield stack.enter_context(open(stack.enter_context(self.downloaded("")).location, "rb"))

    @contextlib.contextmanager
    def downloaded(self, sha256: str) -> Iterator["Source"]:
        """Downloads the file and verifies its checksum.

        Args:
            sha256: Expected checksum; empty to skip the check.

        Yields:
            A local source with the same `name`.

        Raises:
            UserError: If the checksum differs.
        """
        with self.translate_errors(), tempfile.TemporaryDirectory() as folder:
            local = Source(self.location)
            if not self.is_local:
                path = Path(folder) / (Path(urllib.parse.urlsplit(self.location).path).name or "data")
                with self._open(bool(sha256)) as raw, path.open("wb") as file:
                    shutil.copyfileobj(LengthCheckedReader(raw, self), file, 1 << 20)
                local = Source(str(path))
                local.name = self.name
            if sha256:
                with open(local.location, "rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != sha256.lower().removeprefix("sha256:"):
                    raise UserError(
                        f"{self.name} has sha256 {found}, expected {sha256}: the file changed or the checksum is wrong"
                    )
                local.revision = f"sha256:{found}"
            yield local

    def etag(self) -> str:
        """Returns the file's ETag, or else its modification time; empty if the server provides neither.

        Raises:
            UserError: If the file does not exist or is unreachable.
        """
        if self._etag:
            return self._etag
        with self.translate_errors():
            if self.is_local:
                status = Path(self.location).stat()
                return f"{status.st_size}-{status.st_mtime_ns}"
            if self.is_web:
                with contextlib.closing(self._web_file(allow_unknown_size=True)) as file:
                    return file.revision or file.last_modified
            system, path = file_system(self.location)
            system.invalidate_cache()
            return etag_from(system.info(path))

    @contextlib.contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Translates read errors into messages that name the file."""
        try:
            yield
        except (UserError, pa.ArrowInvalid, MemoryError):
            raise
        except FileNotFoundError:
            raise UserError(f"{self.name} does not exist{self._missing_file_hint()}") from None
        except IsADirectoryError:
            raise UserError(
                f"{self.name} is a folder; use a pattern for its files, such as {self.name}/*.jsonl"
            ) from None
        except PermissionError as error:
            raise UserError(f"access to {self.name} is denied: {error}. Check the path and the credentials") from None
        except Exception as error:
            if is_disk_full(error) or not _is_storage_error(error):
                raise
            raise UserError(f"{self.name} could not be read: {_describe(error)}") from error

    @contextlib.contextmanager
    def _open(self, allow_unknown_size: bool = False) -> Iterator[BinaryIO | web.WebFile]:
        if self.is_local:
            with open(self.location, "rb") as file:
                yield file
        elif self.is_web:
            with contextlib.closing(self._web_file(allow_unknown_size)) as web_file:
                yield web_file
        else:
            with open_remote(self.location) as file:
                self.revision = etag_from(getattr(file, "details", None) or {})
                yield file

    def _web_file(self, allow_unknown_size: bool = False) -> web.WebFile:
        file = web.WebFile(self.location, self.name, allow_unknown_size)
        self.revision = file.revision
        return file

    def _missing_file_hint(self) -> str:
        folder = Path(self.location).parent
        if not self.is_local:
            return ": check the URL, and HF_TOKEN or the storage credentials if it is not public"
        if not folder.is_dir():
            return f": folder {folder} does not exist"
        return nearest(Path(self.location).name, sorted(file.name for file in folder.iterdir()))


class LengthCheckedReader:
    """A reader that can peek at the first bytes and raises if the stream ends before its announced length."""

    def __init__(self, raw: BinaryIO | web.WebFile, source: Source) -> None:
        """Wraps a stream.

        Args:
            raw: The open file.
            source: The file's source, for error messages.
        """
        self.raw, self.source = raw, source
        self.closed = False
        self._ahead = b""
        self._done = 0
        self._size = getattr(raw, "size", None)

    def peek(self, count: int) -> bytes:
        """Returns the first bytes without consuming them."""
        while len(self._ahead) < count and (more := self._read_piece(count - len(self._ahead))):
            self._ahead += more
        return self._ahead

    def read(self, count: int = -1) -> bytes:
        """Returns bytes; empty only at the end."""
        if self._ahead:
            ahead, self._ahead = self._ahead, b""
            return ahead
        return self._read_piece(count)

    def _read_piece(self, count: int) -> bytes:
        data = self.raw.read(count)
        self._done += len(data)
        if not data and count and self._size is not None and self._done < self._size:
            raise UserError(
                f"{self.source.name}: the connection ended after {self._done:,} of {self._size:,} bytes. "
                "No partial output was kept; run the step again"
            )
        return data

    def close(self) -> None:
        """Does nothing; the stream is closed by its owner."""


def open_remote(location: str) -> Any:
    """Opens a file in an object store or on the Hub."""
    system, path = file_system(location)
    return system.open(path, "rb")


def file_system(location: str) -> tuple[Any, str]:
    """Returns the fsspec file system of a URL, and the path in it.

    Raises:
        UserError: If the scheme is not supported.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(location)
    except (ValueError, ImportError) as error:
        scheme = location.partition("://")[0]
        raise UserError(f"{scheme}:// is not a supported URL scheme ({error})") from None
    return system, str(path)


def etag_from(details: Mapping[str, object]) -> str:
    """Returns a remote file's ETag from its fsspec details (S3, Google Cloud Storage, the Hub)."""
    return str(next((details[name] for name in ("ETag", "etag", "blob_id") if details.get(name)), "")).strip('"')


def _is_storage_error(error: Exception) -> bool:
    """Returns whether an exception is an error of storage, not a defect of this program."""
    return isinstance(error, OSError | TimeoutError | EOFError) or type(error).__module__.startswith(STORAGE_LIBRARIES)


def _describe(error: Exception) -> str:
    status = getattr(error, "status", None)
    if status in (401, 403):
        return f"the server returned {status}: credentials are required"
        if status:
            return f"the server returned {status}"
    return f"{error}" or type(error).__name__
