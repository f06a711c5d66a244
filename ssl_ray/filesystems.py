"""The file systems behind paths, local or `s3://`, and what their failures mean.

A server that answers 500 or 503, cuts a connection or goes away is waited for. S3 takes its key, region and endpoint from the
usual variables (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`), never from a path.
"""

from __future__ import annotations

import errno
import math
import os
import posixpath
import random
import re
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from ssl_ray.errors import StorageError
from ssl_ray.paths import is_local, local_path, problem_of
from ssl_ray.redaction import carries_secrets, redact

PATIENCE_S = float(os.environ.get("SSL_RAY_PATIENCE_S", "120"))
"""How long a server that fails is waited for."""

TELL_AFTER_S = 3.0  # seconds of waiting before the user is told
_told_at = -math.inf  # time of the last such message, from any thread

PASSING = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|THROTTLING|"
    r"HTTP (response )?(status|code)[^0-9]*5\d\d|curlCode|[Cc]onnection|[Tt]imeout|timed out|Read .*short|truncated"
)
"""What a message of the S3 client says when trying again may help."""

Result = TypeVar("Result")


@lru_cache(maxsize=64)
def _s3(bucket: str, endpoint: str, region: str) -> pafs.FileSystem:
    options: dict[str, Any] = {"connect_timeout": 5, "request_timeout": 60}
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
    if not endpoint and not region:
        region = pafs.resolve_s3_region(bucket)
    return pafs.S3FileSystem(region=region or "us-east-1", **options)


def resolve(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system that serves `path`, and the path inside it.

    Raises:
        StorageError: the path is neither local nor `s3://`, is empty or not UTF-8, or carries credentials.
    """
    scheme, _, rest = path.partition("://")
    if carries_secrets(path):
        raise StorageError(
            f"{redact(scheme)}://...: credentials and options do not belong into a path, where records would keep them; set "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL"
        )
    if problem := problem_of(path):
        raise StorageError(problem)
    if is_local(path):
        return pafs.LocalFileSystem(), local_path(path)
    if scheme != "s3":
        raise StorageError(f"{path}: {scheme}:// cannot be read; use a local path or s3://bucket/prefix")
    rest = posixpath.normpath(rest)  # clients treat `..` and doubled slashes differently, so they are never sent
    bucket = rest.split("/", 1)[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", bucket) or not path.startswith(f"s3://{bucket}"):
        raise StorageError(f"{path}: the name of the bucket is missing or wrong; write s3://bucket/prefix")
    try:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "")
        return _s3(bucket, _endpoint(""), region), rest
    except (pa.ArrowInvalid, OSError) as error:
        raise explained(path, error) from None


def real_path(path: str) -> str:
    """Return the unique name of a path, without links, `..` and doubled slashes."""
    inside = resolve(path)[1]
    return os.path.realpath(inside) if is_local(path) else f"s3://{inside}"


def explained(path: str, error: BaseException) -> StorageError:
    """One line for what the file system said: what, and what to do."""
    said = " ".join(str(error).split())
    rest = path.partition("://")[2]
    if "NO_SUCH_BUCKET" in said or "bucket does not exist" in said.lower():
        return StorageError(f"{path}: the bucket {rest.split('/', 1)[0]} does not exist; make it, or correct the path")
    if re.search(r"ACCESS_DENIED|SIGNATURE_DOES_NOT_MATCH|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|HTTP status 40[13]", said):
        return StorageError(
            f"{path}: the S3 server refuses access; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they are allowed "
            "to do in this bucket"
        )
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in said:
        return StorageError(f"{path}: the disk is full; make room, and the same command goes on where it was")
    if getattr(error, "errno", None) in (errno.EACCES, errno.EROFS, errno.EPERM):
        return StorageError(f"{path} may not be read or written by this user; change its rights, or choose another place")
    if isinstance(error, FileExistsError | NotADirectoryError):
        return StorageError(f"{path}: a file stands where a folder is needed")
    if "://" in path and PASSING.search(said):
        return StorageError(f"{path}: the server ({_endpoint()}) does not answer; when it does, the same command goes on")
    return StorageError(f"{path}: {said}")


def ensure_folder(path: str) -> None:
    """Check that a local folder exists or can be made; nothing is written.

    Raises:
        StorageError: it cannot be made, and which path prevents that.
    """
    while not os.path.exists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        raise explained(path, NotADirectoryError())
    if not os.access(path, os.W_OK | os.X_OK):
        raise explained(path, PermissionError(errno.EACCES, "no access"))


def patient(path: str, operation: Callable[[], Result]) -> Result:
    """Do something on a file system, again while the failure may pass; local ones get no second try.

    Raises:
        FileNotFoundError: as it came.
        StorageError: it failed for good, or for longer than `PATIENCE_S`.
    """
    begin, wait = time.monotonic(), 0.25
    while True:
        tried = time.monotonic()
        try:
            return operation()
        except FileNotFoundError:
            raise
        except OSError as error:
            may_pass = "://" in path and PASSING.search(str(error)) and "NO_SUCH_BUCKET" not in str(error)
            now = time.monotonic()
            # The next try starts after a wait, and may take as long as this one.
            if not may_pass or now - begin + wait + (now - tried) > PATIENCE_S:
                raise explained(path, error) from None
            if now - begin > TELL_AFTER_S:
                _tell_of_waiting(path)
        time.sleep(wait * random.uniform(0.5, 1.0))  # so that many workers do not come back at the same moment
        wait = min(2 * wait, 8.0)


def _tell_of_waiting(path: str) -> None:
    global _told_at
    if time.monotonic() - _told_at > PATIENCE_S:  # once per outage, because many threads may wait
        _told_at = time.monotonic()
        text = f"{path}: the server ({_endpoint()}) does not answer; waiting up to {PATIENCE_S:.0f} s for it"
        print(redact(text), file=sys.stderr, flush=True)


def _endpoint(default: str = "AWS") -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or default


def file_info(path: str) -> pafs.FileInfo:
    """Type, size and time of change of one file or folder."""
    filesystem, inside = resolve(path)
    return patient(path, lambda: filesystem.get_file_info(inside))


def read_file(path: str) -> bytes:
    """All bytes of a file."""
    filesystem, inside = resolve(path)

    def read() -> bytes:
        with filesystem.open_input_stream(inside) as stream:
            return bytes(stream.read())

    return patient(path, read)


def absolute(path: str) -> str:
    """The same place from any working folder: a worker's is not the driver's."""
    return resolve(path)[1] if is_local(path) else path
