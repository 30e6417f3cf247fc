"""One file on a web server: a broken connection is taken up where it ended, and what came is held to what was said."""

import io
import time
from collections.abc import Mapping
from typing import Any

import requests
import urllib3
import xxhash
from requests.adapters import HTTPAdapter

from llm_finetune.components.data.sources import answers
from llm_finetune.components.shared.errors import UserError

CONNECT_SECONDS = 30
SILENCE_SECONDS = 60  # a server that sends nothing for so long is taken for gone
ATTEMPTS = 8  # in a row without a byte gained
BACKOFF = 0.5  # seconds, doubled from attempt to attempt
LONGEST_WAIT = 60  # seconds, whatever Retry-After asks for
BUSY = (408, 425, 429, 500, 502, 503, 504)
BROKEN = (urllib3.exceptions.HTTPError, requests.RequestException, ConnectionError, TimeoutError)
_PIECE = 1 << 18  # what a cut within a chunk may cost


class WebFile:
    """A file behind an `https://` or `http://` URL, open for reading.

    Busy answers (429, 503 and the like) are waited for, as long as `Retry-After` says or ever longer. After a break
    the rest is asked for with `Range`, on condition that the file is still the same; where the server can't do that,
    the file is read again from its beginning, and the part that was read before must be equal.

    Attributes:
        size: Bytes of the file; None where the server does not say.
        revision: The server's ETag, without quotes; may be empty.
        last_modified: When the server says that the file was last changed; may be empty.
        has_ranges: Whether any part of the file can be asked for.
    """

    def __init__(self, url: str, name: str, size_may_be_unknown: bool = False) -> None:
        """Asks for the file.

        Args:
            url: Its address.
            name: What messages call it.
            size_may_be_unknown: Whether a file whose end can't be told from a cut is taken all the same, because its
                checksum is looked at later.

        Raises:
            FileNotFoundError: If there is none (404, 410).
            UserError: If the server refuses it, or can't be reached.
        """
        self.url, self.name = url, name
        self.closed = False
        self._session = _session()
        self._done = 0
        self._ended = False
        self._read_so_far = xxhash.xxh3_128()
        try:
            self._response: Any = self._ask({})
        except BROKEN as error:
            raise UserError(f"{name} could not be read: {answers.reason(error)}") from None
        headers = self._response.headers
        self.size = answers.length(headers)
        self.revision = headers.get("ETag", "").removeprefix("W/").strip('"')
        self.last_modified = headers.get("Last-Modified", "")
        self.has_ranges = self.size is not None and headers.get("Accept-Ranges", "").lower() == "bytes"
        self._same = {"ETag": headers.get("ETag"), "Last-Modified": headers.get("Last-Modified")}
        self._digest, self._expected_digest = answers.announced_digest(headers)
        if self.size is None and not self._response.raw.chunked and not size_may_be_unknown:
            self.close()
            raise UserError(
                f"{name}: the server does not say how long the file is, so that a cut would go unseen. Set sha256"
            )

    def read(self, count: int = -1) -> bytes:
        """Returns up to `count` bytes (all by default); empty only at the true end."""
        pieces: list[bytes] = []
        wanted = count
        while wanted and (piece := self._next(min(wanted, _PIECE) if wanted > 0 else _PIECE)):
            pieces.append(piece)
            wanted -= len(piece) if wanted > 0 else 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_at(self, start: int, count: int) -> bytes:
        """Returns the bytes from `start` on, of a file that `has_ranges`."""
        assert self.size is not None
        end, data, failures = min(start + count, self.size), b"", 0
        while start + len(data) < end:
            try:
                with self._range(start + len(data), end) as response:
                    piece = response.raw.read(end - start - len(data), decode_content=False)
            except BROKEN as error:
                piece = b""
                failures = self._wait(failures, error, start + len(data))
            data += piece
        return data

    def close(self) -> None:
        """Gives up the connection."""
        self.closed = True
        if self._response is not None:
            self._response.close()
        self._session.close()

    def _next(self, count: int) -> bytes:
        failures = 0
        while not self._ended:
            try:
                if self._response is None:
                    self._take_up()
                data = self._response.raw.read(count, decode_content=False)
            except BROKEN as error:
                self._drop()
                failures = self._wait(failures, error, self._done)
                continue
            self._read_so_far.update(data)
            if self._digest:
                self._digest.update(data)
            self._done += len(data)
            if data or not count:
                return data
            self._check_end()
            self._ended = True
        return b""

    def _take_up(self) -> None:
        """Goes on after what was read, in a new connection."""
        condition = answers.condition(self._same)
        if self.size is not None and condition and self.has_ranges:
            self._response = self._range(self._done, self.size, condition)
            return
        self._response = self._ask({})
        self._check_same(self._response.headers, answers.length(self._response.headers))
        again, missing = xxhash.xxh3_128(), self._done
        while missing and (piece := self._response.raw.read(min(missing, _PIECE), decode_content=False)):
            again.update(piece)
            missing -= len(piece)
        if missing or again.digest() != self._read_so_far.digest():
            raise self._changed()

    def _range(self, start: int, end: int, condition: str = "") -> Any:
        headers = {"Range": f"bytes={start}-{end - 1}"}
        if condition or (condition := answers.condition(self._same)):
            headers["If-Range"] = condition
        response = self._ask(headers)
        begins, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if response.status_code != 206 or not begins.startswith(f"{start}-"):
            response.close()
            raise self._changed()
        self._check_same(response.headers, int(total) if total.isdigit() else self.size)
        return response

    def _check_end(self) -> None:
        """Holds the whole file to what was announced, and looks whether the server has more than it said."""
        if self._digest and self._digest.digest() != self._expected_digest:
            raise UserError(
                f"{self.name} came damaged: its {self._digest.name} is {self._digest.hexdigest()}, the server "
                f"announced {self._expected_digest.hex()}"
            )
        if self.size and self.has_ranges and self._has_more():
            raise UserError(f"{self.name} is longer than the {self.size:,} bytes that the server announced for it")

    def _has_more(self) -> bool:
        """Tells whether the server gives bytes past the announced end; one that refuses to answer does not."""
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={self.size}-"}
        try:
            with self._session.get(self.url, headers=headers, stream=True, timeout=CONNECT_SECONDS) as response:
                return bool(response.status_code == 206)
        except BROKEN:
            return False

    def _check_same(self, headers: Mapping[str, str], size: int | None) -> None:
        for key, before in self._same.items():
            if before and headers.get(key, before) != before:
                raise self._changed()
        if size != self.size:
            raise self._changed()

    def _changed(self) -> UserError:
        return UserError(f"{self.name} changed while it was read. Nothing was kept; run the step again")

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response = None

    def _wait(self, failures: int, error: Exception, done: int) -> int:
        if failures + 1 >= ATTEMPTS:
            whole = f" of {self.size:,}" if self.size is not None else ""
            raise UserError(
                f"{self.name}: the connection ended after {done:,}{whole} bytes, {ATTEMPTS} times in a row "
                f"({answers.reason(error)}). Nothing was kept; run the step again"
            ) from None
        time.sleep(min(BACKOFF * 2**failures, LONGEST_WAIT))
        return failures + 1

    def _ask(self, headers: dict[str, str]) -> Any:
        # Packed transfer would hide the true size; files that are packed themselves come as they are.
        headers = {"Accept-Encoding": "identity", **headers}
        timeout = (CONNECT_SECONDS, SILENCE_SECONDS)
        response = self._session.get(self.url, headers=headers, stream=True, timeout=timeout)
        status = response.status_code
        if status in (200, 206):
            return response
        response.close()
        if status in (404, 410):
            raise FileNotFoundError(self.name)
        if status == 412 or (status == 416 and "Range" in headers):
            raise self._changed()
        wants = ": it wants credentials" if status in (401, 403) else ""
        patience = f", {ATTEMPTS} times in a row" if status in BUSY else ""
        raise UserError(f"{self.name} could not be read: the server answered {status}{patience}{wants}")


class Seekable(io.RawIOBase):
    """A web file that can be read at any place, a range at a time."""

    def __init__(self, file: WebFile) -> None:
        """Wraps a file that `has_ranges`."""
        self._file, self._at = file, 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the place of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a place counted from the beginning, from here or from the end."""
        begins = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size or 0}
        self._at = begins[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer, to the end of the file at most."""
        data = self._file.read_at(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _session() -> requests.Session:
    session = requests.Session()
    retry = urllib3.Retry(
        total=ATTEMPTS - 1, connect=3, redirect=0, allowed_methods={"GET"}, status_forcelist=BUSY,
        raise_on_status=False, backoff_factor=BACKOFF, backoff_max=LONGEST_WAIT, retry_after_max=LONGEST_WAIT,
    )  # fmt: skip
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session
