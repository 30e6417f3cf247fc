"""Reads a file from a web server: resumes broken connections, and verifies length and digest."""

import base64
import binascii
import hashlib
import io
import time
from collections.abc import Mapping
from typing import Any

import requests
import urllib3
import xxhash
from requests.adapters import HTTPAdapter

from llm_finetune.components.shared.errors import UserError

CONNECT_SECONDS = 30
READ_SECONDS = 60  # read timeout
ATTEMPTS = 8  # consecutive attempts without progress
BACKOFF_SECONDS = 0.5  # doubled after each attempt
MAX_WAIT_SECONDS = 60  # upper limit for Retry-After too
RETRY_STATUSES = (408, 425, 429, 500, 502, 503, 504)
CONNECTION_ERRORS = (urllib3.exceptions.HTTPError, requests.RequestException, ConnectionError, TimeoutError)
_PIECE_BYTES = 1 << 18  # bytes lost at most when a connection breaks


class WebFile:
    """A file at an `https://` or `http://` URL, open for reading.

    Requests are retried after 429, 503 and similar responses, with exponential backoff or `Retry-After`. After a
    broken connection the rest is requested with `Range` and `If-Range`. If the server supports no ranges, the file is
    read again from the start and the part that was already read must be identical.

    Attributes:
        size: Size in bytes; None if the server does not send it.
        revision: ETag without quotes; can be empty.
        last_modified: The header `Last-Modified`; can be empty.
        has_ranges: Whether the server supports range requests.
    """

    def __init__(self, url: str, name: str, allow_unknown_size: bool = False) -> None:
        """Sends the first request.

        Args:
            url: URL of the file.
            name: Name for error messages.
            allow_unknown_size: Whether to accept a file without Content-Length, because its checksum is verified later.

        Raises:
            FileNotFoundError: If the file does not exist (404, 410).
            UserError: If the server is unreachable or rejects the request.
        """
        self.url, self.name = url, name
        self.closed = False
        self._session = _session()
        self._done = 0
        self._ended = False
        self._content_so_far = xxhash.xxh3_128()
        try:
            self._response: requests.Response | None = self._request({})
        except CONNECTION_ERRORS as error:
            raise UserError(f"{name} could not be read: {_innermost_reason(error)}") from None
        headers = self._response.headers
        self.size = _content_length(headers)
        self.revision: str = headers.get("ETag", "").removeprefix("W/").strip('"')
        self.last_modified: str = headers.get("Last-Modified", "")
        self.has_ranges = self.size is not None and headers.get("Accept-Ranges", "").lower() == "bytes"
        self._validators = {"ETag": headers.get("ETag"), "Last-Modified": headers.get("Last-Modified")}
        self._digest, self._expected_digest = _announced_digest(headers)
        if self.size is None and not self._response.raw.chunked and not allow_unknown_size:
            self.close()
            raise UserError(
                f"{name}: the server sends no Content-Length, so a truncated file could not be detected. Set sha256"
            )

    def read(self, count: int = -1) -> bytes:
        """Returns up to `count` bytes (all by default); empty only at the end."""
        pieces: list[bytes] = []
        wanted = count
        while wanted and (piece := self._read_piece(min(wanted, _PIECE_BYTES) if wanted > 0 else _PIECE_BYTES)):
            pieces.append(piece)
            wanted -= len(piece) if wanted > 0 else 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_at(self, start: int, count: int) -> bytes:
        """Returns `count` bytes from offset `start`; requires `has_ranges`."""
        assert self.size is not None
        end, data, failures = min(start + count, self.size), b"", 0
        while start + len(data) < end:
            try:
                with self._request_range(start + len(data), end) as response:
                    piece = response.raw.read(end - start - len(data), decode_content=False)
            except CONNECTION_ERRORS as error:
                piece = b""
                failures = self._back_off(failures, error, start + len(data))
            data += piece
        return data

    def close(self) -> None:
        """Closes the connection."""
        self.closed = True
        if self._response is not None:
            self._response.close()
        self._session.close()

    def _read_piece(self, count: int) -> bytes:
        failures = 0
        while not self._ended:
            try:
                response = self._resume() if self._response is None else self._response
                data: bytes = response.raw.read(count, decode_content=False)
            except CONNECTION_ERRORS as error:
                self._disconnect()
                failures = self._back_off(failures, error, self._done)
                continue
            self._content_so_far.update(data)
            if self._digest:
                self._digest.update(data)
            self._done += len(data)
            if data or not count:
                return data
            self._check_end()
            self._ended = True
        return b""

    def _resume(self) -> requests.Response:
        """Continues reading in a new connection, which becomes the current one."""
        condition = _range_condition(self._validators)
        if self.size is not None and condition and self.has_ranges:
            self._response = self._request_range(self._done, self.size, condition)
            return self._response
        self._response = response = self._request({})
        self._check_validators(response.headers, _content_length(response.headers))
        again, missing = xxhash.xxh3_128(), self._done
        while missing and (piece := response.raw.read(min(missing, _PIECE_BYTES), decode_content=False)):
            again.update(piece)
            missing -= len(piece)
        if missing or again.digest() != self._content_so_far.digest():
            raise self._changed_error()
        return response

    def _request_range(self, start: int, end: int, condition: str = "") -> requests.Response:
        headers = {"Range": f"bytes={start}-{end - 1}"}
        if condition or (condition := _range_condition(self._validators)):
            headers["If-Range"] = condition
        response = self._request(headers)
        begins, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if response.status_code != 206 or not begins.startswith(f"{start}-"):
            response.close()
            raise self._changed_error()
        self._check_validators(response.headers, int(total) if total.isdigit() else self.size)
        return response

    def _check_end(self) -> None:
        """Verifies the announced digest, and that the file does not continue after its announced length."""
        if self._digest and self._digest.digest() != self._expected_digest:
            raise UserError(
                f"{self.name} was damaged in transfer: its {self._digest.name} is {self._digest.hexdigest()}, but the "
                f"server announced {self._expected_digest.hex()}"
            )
        if self.size and self.has_ranges and self._has_more_bytes():
            raise UserError(f"{self.name} is longer than the {self.size:,} bytes that the server announced")

    def _has_more_bytes(self) -> bool:
        """Returns whether the server returns bytes after the announced end."""
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={self.size}-"}
        try:
            with self._session.get(self.url, headers=headers, stream=True, timeout=CONNECT_SECONDS) as response:
                return bool(response.status_code == 206)
        except CONNECTION_ERRORS:
            return False

    def _check_validators(self, headers: Mapping[str, str], size: int | None) -> None:
        for key, before in self._validators.items():
            if before and headers.get(key, before) != before:
                raise self._changed_error()
        if size != self.size:
            raise self._changed_error()

    def _changed_error(self) -> UserError:
        return UserError(f"{self.name} changed while it was read. No partial output was kept; run the step again")

    def _disconnect(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response = None

    def _back_off(self, failures: int, error: Exception, done: int) -> int:
        if failures + 1 >= ATTEMPTS:
            whole = f" of {self.size:,}" if self.size is not None else ""
            raise UserError(
                f"{self.name}: the connection ended after {done:,}{whole} bytes, {ATTEMPTS} times in a row "
                f"({_innermost_reason(error)}). No partial output was kept; run the step again"
            ) from None
        time.sleep(min(BACKOFF_SECONDS * 2**failures, MAX_WAIT_SECONDS))
        return failures + 1

    def _request(self, headers: dict[str, str]) -> requests.Response:
        # Transfer compression would hide the file's size.
        headers = {"Accept-Encoding": "identity", **headers}
        timeout = (CONNECT_SECONDS, READ_SECONDS)
        response = self._session.get(self.url, headers=headers, stream=True, timeout=timeout)
        status = response.status_code
        if status in (200, 206):
            return response
        response.close()
        if status in (404, 410):
            raise FileNotFoundError(self.name)
        if status == 412 or (status == 416 and "Range" in headers):
            raise self._changed_error()
        hint = ": credentials are required" if status in (401, 403) else ""
        retries = f", {ATTEMPTS} times in a row" if status in RETRY_STATUSES else ""
        raise UserError(f"{self.name} could not be read: the server returned {status}{retries}{hint}")


class SeekableWebFile(io.RawIOBase):
    """Random access to a web file by range requests."""

    def __init__(self, file: WebFile) -> None:
        """Wraps a file that `has_ranges`."""
        self._file, self._position = file, 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the offset of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Sets the offset of the next read."""
        begins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size or 0}
        self._position = begins[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Reads bytes into a buffer."""
        data = self._file.read_at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _session() -> requests.Session:
    session = requests.Session()
    retry = urllib3.Retry(
        total=ATTEMPTS - 1, connect=3, redirect=0, allowed_methods={"GET"}, status_forcelist=RETRY_STATUSES,
        raise_on_status=False, backoff_factor=BACKOFF_SECONDS, backoff_max=MAX_WAIT_SECONDS,
        retry_after_max=MAX_WAIT_SECONDS,
    )  # fmt: skip
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _content_length(headers: Mapping[str, str]) -> int | None:
    """Returns the announced size of the file; None if the response has no fixed length."""
    _content_length = headers.get("Content-Length", "")
    return int(_content_length) if _content_length.isdigit() and "Transfer-Encoding" not in headers else None


def _range_condition(same: Mapping[str, str | None]) -> str:
    """Returns the value for `If-Range`: a strong ETag, or else `Last-Modified`."""
    tag = same["ETag"]
    return tag if tag and not tag.startswith("W/") else same["Last-Modified"] or ""


def _announced_digest(headers: Mapping[str, str]) -> tuple[Any, bytes]:
    """Returns a new hash object and the digest that the server announced; None if it announced none."""
    for field in headers.get("Repr-Digest", headers.get("Digest", "")).split(","):
        algorithm, _, value = field.strip().partition("=")
        if algorithm.lower() == "sha-256" and (digest := _decode_base64(value.strip(":"))):
            return hashlib.sha256(), digest
    if digest := _decode_base64(headers.get("Content-MD5", "")):
        return hashlib.md5(usedforsecurity=False), digest
    return None, b""


def _decode_base64(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        return b""


def _innermost_reason(error: BaseException) -> str:
    """Returns the innermost cause, which unlike the outer exceptions does not contain the signed URL."""
    while (inner := getattr(error, "reason", None) or (error.args[0] if error.args else None)) is not None:
        if not isinstance(inner, BaseException):
            break
        error = inner
    if isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError | requests.Timeout):
        return "the server timed out"
    if isinstance(error, requests.TooManyRedirects):
        return "too many redirects"
    text = str(error) if "://" not in str(error) else ""
    return text.rpartition(": ")[2] or type(error).__name__
