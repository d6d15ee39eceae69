"""Keys and addresses of the store, checked before anything is done with them."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from cmseg_core.errors import InputError

LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]|#\d+(/|$)")
"""Control characters, backslashes, and the ``#1`` that a local store gives to its own unfinished files."""


def checked_key(key: str) -> str:
    """Return `key` where it is a relative POSIX path without tricks.

    Raises
    ------
    InputError
        Where it is empty or absolute, holds a backslash or a control character, an empty, ``.`` or ``..`` part, or a
        part that ends in ``#`` and digits.
    """
    parts = key.split("/")
    if _UNSAFE.search(key) or any(part in {"", ".", ".."} for part in parts):
        raise InputError(
            repr(key), "is not a valid key of the store", "use a relative path such as work/stage/file.json"
        )
    return key


def checked_prefix(prefix: str) -> str:
    """As `checked_key`, but the empty string (everything) and one closing slash are allowed; returned without it."""
    prefix = prefix.removesuffix("/")
    return checked_key(prefix) if prefix else ""


def s3_location(uri: str) -> tuple[str, str]:
    """Split ``s3://bucket/prefix`` into bucket and prefix (which may be empty)."""
    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise InputError(uri, "is not the address of a bucket", "give s3://bucket or s3://bucket/prefix")
    if not _BUCKET.fullmatch(parts.netloc):
        raise InputError(uri, "is not a valid bucket name", "use 3 to 63 lower-case letters, digits, dots and hyphens")
    return parts.netloc, checked_prefix(parts.path.removeprefix("/"))


def s3_endpoint(endpoint: str | None) -> str | None:
    """The endpoint to talk to: the one given, else that of ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``.

    Raises
    ------
    InputError
        For plain http to another machine: credentials and data would cross the network in the clear. For a user or a
        password in the address, which would stand in logs.
    """
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return None
    parts = urlsplit(endpoint)
    if "@" in parts.netloc:
        mend = "leave them out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise InputError("the endpoint of the store", "holds a user or a password", mend)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InputError(endpoint, "is not an endpoint", "give a URL such as https://s3.example.org")
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise InputError(endpoint, "is plain http to another machine", "use https; http is for loopback only")
    return endpoint.rstrip("/")
