"""Read and write objects in an object store with Amazon's S3 protocol, in a bucket below a prefix.

The usual environment variables give the endpoint (AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL), the region (AWS_REGION or
AWS_DEFAULT_REGION), and the credentials (AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY, or AWS_PROFILE). Without the
variables for credentials, the S3 client uses the credentials that it finds on the machine, for example in
~/.aws/credentials. A URI must not contain credentials, because a study writes its URI to files.
"""

from __future__ import annotations

import functools
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

SCHEME = "s3://"
ACCEPTED = "give a folder, or s3://BUCKET/PREFIX"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_PART = re.compile(r"[A-Za-z0-9._ =,+()!-]{1,200}")  # characters that all services accept and that are safe in a shell
_CONNECT_WITHIN = 3.0  # seconds
_SILENCE = 15.0  # seconds without a byte after which a request has failed; each request is tried twice
_AT_ONCE = 5.0  # seconds; this limit replaces _SILENCE for the request of `reach`, and this request is tried once
_WHY = {
    "NO_SUCH_BUCKET": "there is no such bucket",
    "ACCESS_DENIED": "the credentials are missing or not accepted: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "or AWS_PROFILE",
    "NETWORK_CONNECTION": "the store does not answer",
}
_DENIED = ("INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID", "HTTP status 403")


class StoreError(OSError):
    """An error of the object store. The message is the reason, in one line."""


@dataclass(frozen=True)
class S3Prefix:
    """A prefix in a bucket. The methods take names of objects relative to the prefix, such as "best/model.json".

    This object can be pickled for other machines. It contains no credentials. Each machine uses its own.

    Attributes:
        bucket: the name of the bucket.
        prefix: the prefix without "/" at its ends, or "" for the whole bucket.
        endpoint: http(s)://HOST[:PORT], or "" for Amazon's endpoint.
        region: the region, or "" if pyarrow's client chooses it.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""

    def __str__(self) -> str:
        return f"{SCHEME}{self._path()}"

    def __truediv__(self, name: str) -> S3Prefix:
        """Return the prefix `name` below this prefix. Raise ValueError if the name is not allowed (see parts_of)."""
        return replace(self, prefix="/".join(part for part in (self.prefix, *parts_of(name)) if part))

    @property
    def parent(self) -> S3Prefix:
        """Return this prefix without its last part."""
        return replace(self, prefix=self.prefix.rpartition("/")[0])

    def read(self, name: str) -> bytes:
        """Return the content of an object.

        Raises:
            FileNotFoundError: if the object does not exist.
            StoreError: if the object cannot be read for another reason.
        """
        with told(self), self._client().open_input_stream(self._path(name)) as stream:
            return bytes(stream.read())

    def write(self, name: str, content: bytes) -> None:
        """Write an object as a whole or not at all. Raise StoreError if this fails."""
        with told(self):
            stream = self._client().open_output_stream(self._path(name))
            stream.write(content)
            stream.close()  # without `with`, which would also complete the object after a failed write

    def remove(self, name: str) -> None:
        """Remove an object if it exists. Raise StoreError if this fails."""
        with told(self):
            try:
                self._client().delete_file(self._path(name))
            except FileNotFoundError:
                return

    def names(self, under: str = "") -> list[str]:
        """Return the sorted names of all objects below this prefix. The names are relative to this prefix.

        Args:
            under: a folder, relative to this prefix. Return only the names of objects in this folder and its
                subfolders, or all names if it is "".

        Raises:
            StoreError: if the store cannot be read.
        """
        start = len(self._path()) + 1
        return sorted(info.path[start:] for info in self._listed(under, recursive=True) if info.is_file)

    def children(self) -> list[str]:
        """Return the sorted names of the direct subfolders. If there is an object "a/b/c", then "a" is a direct
        subfolder. Raise StoreError if the store cannot be read."""
        return sorted(info.base_name for info in self._listed("", recursive=False) if not info.is_file)

    def reach(self) -> None:
        """Check that the store answers within a few seconds, and that the bucket exists. Raise StoreError if not."""
        with told(self):
            if self.endpoint:
                _knock(self.endpoint)
            if not self._client(at_once=True).get_file_info(self.bucket).type:  # FileType.NotFound is 0
                raise OSError(_WHY["NO_SUCH_BUCKET"])

    def _listed(self, under: str, *, recursive: bool) -> list[Any]:
        from pyarrow import fs

        with told(self):
            where = fs.FileSelector(self._path(under), allow_not_found=True, recursive=recursive)
            return list(self._client().get_file_info(where))

    def _path(self, name: str = "") -> str:
        return "/".join(part for part in (self.bucket, self.prefix, *parts_of(name)) if part)

    def _client(self, *, at_once: bool = False) -> Any:
        return _client(self.bucket, self.endpoint, self.region, at_once)


def parse_store(uri: str) -> S3Prefix:
    """Return the prefix that a URI such as s3://BUCKET/PREFIX names. Environment variables give the endpoint and the
    region.

    Raises:
        ValueError: if the URI is wrong. The message is one line without secrets.
    """
    if not uri.startswith(SCHEME):
        raise ValueError(f"{ACCEPTED}: no other object stores are supported")
    if set(uri) & set("@?#"):
        raise ValueError(
            "the URI must not contain credentials or settings: set AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ... instead"
        )
    bucket, _, prefix = uri.removeprefix(SCHEME).partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(f"{'no bucket can have this name' if bucket else 'the bucket is missing'}: {ACCEPTED}")
    environment = os.environ.get
    endpoint = environment("AWS_ENDPOINT_URL_S3") or environment("AWS_ENDPOINT_URL") or ""
    region = environment("AWS_REGION") or environment("AWS_DEFAULT_REGION") or ""
    if endpoint and (urlsplit(endpoint).scheme not in ("http", "https") or "@" in endpoint):
        raise ValueError("AWS_ENDPOINT_URL must be http://HOST:PORT or https://HOST, without a password")
    return S3Prefix(bucket, "/".join(parts_of(prefix.strip("/"))), endpoint.rstrip("/"), region)


def parts_of(name: str) -> tuple[str, ...]:
    """Split an object's name at "/", and return its parts. Raise ValueError if a part contains a character that is not
    allowed, or is longer than 200 characters, or is "." or ".."."""
    parts = tuple(name.split("/")) if name else ()
    for part in parts:
        if part in (".", "..") or not _PART.fullmatch(part):
            raise ValueError(
                f"{part[:60]!r} is no name in an object store: use 1 to 200 letters, digits, spaces or ._-=,+()!"
            )
    return parts


@contextmanager
def told(store: S3Prefix) -> Iterator[None]:
    """Convert OSError and ImportError, which pyarrow raises in the `with` block, into StoreError. FileNotFoundError is
    not converted."""
    try:
        yield
    except (FileNotFoundError, StoreError):
        raise
    except (OSError, ImportError) as error:
        raise StoreError(f"{store}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Describe an error of pyarrow's S3 client in one line. For a well-known error, the line is an explanation in plain
    words. For any other error, it is the error's own text."""
    text = " ".join(str(error).split())
    if any(word in text for word in _DENIED):
        return _WHY["ACCESS_DENIED"]
    known = any(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"))
    hint = "" if known else " (neither AWS_ACCESS_KEY_ID nor AWS_PROFILE is set)"
    return next((why for word, why in _WHY.items() if word in text), f"{text[:200]}{hint}")


def _knock(endpoint: str) -> None:
    """Raise OSError if nothing listens at the endpoint. Without this check, pyarrow's client would try for longer."""
    parts = urlsplit(endpoint)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_WITHIN).close()
    except (OSError, ValueError, OverflowError) as error:
        raise OSError(f"nothing answers at {endpoint} ({error})") from None


@functools.lru_cache(maxsize=8)
def _client(bucket: str, endpoint: str, region: str, at_once: bool) -> Any:
    from pyarrow import fs

    if not region:
        region = "us-east-1" if endpoint else fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        endpoint_override=endpoint or None,
        region=region,
        connect_timeout=_CONNECT_WITHIN,
        request_timeout=_AT_ONCE if at_once else _SILENCE,
        allow_delayed_open=True,  # writes a small object with one request, without an empty object first
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1 if at_once else 2),
    )
