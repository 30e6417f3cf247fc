"""What a web server's answer says: length, checksum, condition of going on, and the reason of a failure."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any

import requests
import urllib3


def length(headers: Mapping[str, str]) -> int | None:
    """Returns the announced bytes of the file, None where the answer has no set length."""
    length = headers.get("Content-Length", "")
    return int(length) if length.isdigit() and "Transfer-Encoding" not in headers else None


def condition(same: Mapping[str, str | None]) -> str:
    """Returns what If-Range may hold: a strong ETag, else the date of the last change."""
    tag = same["ETag"]
    return tag if tag and not tag.startswith("W/") else same["Last-Modified"] or ""


def announced_digest(headers: Mapping[str, str]) -> tuple[Any, bytes]:
    """Returns a hash to compute and the value that the server announced; none where it announced none."""
    for field in headers.get("Repr-Digest", headers.get("Digest", "")).split(","):
        algorithm, _, value = field.strip().partition("=")
        if algorithm.lower() == "sha-256" and (digest := _base64(value.strip(":"))):
            return hashlib.sha256(), digest
    if digest := _base64(headers.get("Content-MD5", "")):
        return hashlib.md5(usedforsecurity=False), digest
    return None, b""


def _base64(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        return b""


def reason(error: BaseException) -> str:
    """Returns the innermost cause, which, unlike the outer ones, does not hold the URL with its signature."""
    while (inner := getattr(error, "reason", None) or (error.args[0] if error.args else None)) is not None:
        if not isinstance(inner, BaseException):
            break
        error = inner
    if isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError | requests.Timeout):
        return "nothing came for a long time"
    if isinstance(error, requests.TooManyRedirects):
        return "it redirects in a circle"
    text = str(error) if "://" not in str(error) else ""
    return text.rpartition(": ")[2] or type(error).__name__
