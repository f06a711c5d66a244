"""Folders, local or `s3://`, through one code path (`pyarrow.fs`).

A file appears whole or not at all: on a local disk it is written beside its name and renamed; an object store shows an
object only when its upload is complete. A server that answers 500 or 503, cuts a connection or goes away is waited for.

S3 takes its key, region and endpoint from the usual variables (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`,
`AWS_ENDPOINT_URL`), never from a path.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import posixpath
import random
import re
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ssl_ray.damage import NewerError, damaged, misfit, newer, parsed, sealed, unsealed
from ssl_ray.errors import DamagedError, StorageError
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


def _ensure_folder(path: str) -> None:
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


@dataclass(frozen=True)
class Folder:
    """A folder and what can be done in it. It need not exist before the first write."""

    path: str

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.path.rstrip('/')}/{name}")

    def file(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def exists(self, name: str = "") -> bool:
        return file_info(self.file(name) if name else self.path).type != pafs.FileType.NotFound

    def holds_file(self, name: str) -> bool:
        """Return whether there is a file, not a folder, with this name."""
        return file_info(self.file(name)).type == pafs.FileType.File

    def _list(self, recursive: bool = False) -> list[pafs.FileInfo]:
        filesystem, path = resolve(self.path)
        selector = pafs.FileSelector(path, allow_not_found=True, recursive=recursive)
        return patient(self.path, lambda: list(filesystem.get_file_info(selector)))

    def infos(self) -> list[pafs.FileInfo]:
        """Size and time of the files directly in the folder."""
        return [info for info in self._list() if info.type == pafs.FileType.File and not info.base_name.startswith(".tmp-")]

    def names(self, suffix: str = "") -> list[str]:
        """Names of the files directly in the folder that end in `suffix`, sorted."""
        return sorted(info.base_name for info in self.infos() if info.base_name.endswith(suffix))

    def all_names(self, suffix: str = "") -> list[str]:
        """The same at any depth, with the folders between."""
        base = resolve(self.path)[1].rstrip("/") + "/"
        files = (info for info in self._list(recursive=True) if info.type == pafs.FileType.File)
        return sorted(info.path.removeprefix(base) for info in files if info.base_name.endswith(suffix))

    def holds_more_than(self, name: str) -> bool:
        """Whether there is any file at any depth besides `name`."""
        path = resolve(self.path)[1]
        return any(
            info.type == pafs.FileType.File and info.path != f"{path}/{name}" and not info.base_name.startswith(".tmp-")
            for info in self._list(recursive=True)
        )

    def read_bytes(self, name: str) -> bytes:
        return read_file(self.file(name))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a whole file; a reader sees the old one, or the new one, or none."""
        filesystem, path = resolve(self.file(name))

        def local() -> None:
            folder = os.path.dirname(path)
            os.makedirs(folder, exist_ok=True)
            temporary = os.path.join(folder, f".tmp-{uuid.uuid4().hex}")
            try:
                with open(temporary, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temporary, path)
            finally:
                if os.path.exists(temporary):
                    os.unlink(temporary)

        def remote() -> None:
            with filesystem.open_output_stream(path) as stream:  # one write: there is no half of it to close
                stream.write(data)

        try:
            patient(self.file(name), local if isinstance(filesystem, pafs.LocalFileSystem) else remote)
        except FileNotFoundError as error:
            raise explained(self.file(name), error) from None

    def damaged(self, name: str, problem: str) -> DamagedError:
        """Build the error for a damaged file in this folder; `problem` says what is wrong, such as "it is empty"."""
        return damaged(self.file(name), problem, read_file)

    def read_own(self, name: str) -> bytes:
        """Read a file that must be there.

        Raises:
            DamagedError: the file is missing, or a folder has its name.
        """
        try:
            return self.read_bytes(name)
        except FileNotFoundError:
            raise self.damaged(name, "it is missing") from None
        except StorageError:
            if file_info(self.file(name)).type == pafs.FileType.Directory:
                raise self.damaged(name, "it is a folder, not a file") from None
            raise

    def read_json(self, name: str) -> Any:
        """Read a JSON file; raise DamagedError if it is missing or not JSON."""
        try:
            return parsed(self.read_own(name))
        except DamagedError:
            raise
        except ValueError as error:
            raise self.damaged(name, str(error)) from None

    def read_sealed(self, name: str, fields: Collection[str] = ()) -> dict[str, Any]:
        """Read a document that `write_sealed` wrote.

        Args:
            fields: keys that the document must have, and no others; empty: any keys.

        Raises:
            DamagedError: the file is missing, its content is not what was written, or a newer version wrote it.
        """
        value = self.read_json(name)
        try:
            return unsealed(value, fields)
        except NewerError as error:
            raise newer(self.file(name), str(error)) from None
        except ValueError as error:
            raise self.damaged(name, str(error)) from None

    def write_sealed(self, name: str, document: Mapping[str, Any]) -> None:
        """Write a document with a digest of its content."""
        self.write_json(name, sealed(document))

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())

    def open_parquet(self, name: str) -> pq.ParquetFile:
        """Open a Parquet file of ours and verify the checksums of its pages. Call it inside `naming_damage`."""
        filesystem, path = resolve(self.file(name))
        return pq.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True)

    @contextlib.contextmanager
    def naming_damage(self, name: str) -> Iterator[None]:
        """Turn Arrow's errors about a Parquet file of ours into DamagedError; errors of the file system pass through."""
        try:
            yield
        except MemoryError:
            raise
        except FileNotFoundError:
            raise self.damaged(name, "it is missing") from None
        except (pa.ArrowException, OSError) as error:
            # Errors of a file system have a number or come from S3; errors of the file format have neither.
            if isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error)):
                raise
            raise self.damaged(name, str(error)) from None

    def read_table(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        schema: pa.Schema | None = None,
        check: Callable[[pq.FileMetaData], str] | None = None,
    ) -> pa.Table:
        """Read a Parquet file of ours.

        Args:
            columns: columns to read; None: all.
            schema: columns and types that the file must have; None: only `columns` must be there.
            check: takes the footer and says what is wrong with it, or returns "".

        Raises:
            DamagedError: the file is missing, cannot be read, or does not fit.
        """

        def read() -> pa.Table:
            with self.naming_damage(name), self.open_parquet(name) as file:  # no discovery of siblings
                problem = misfit(file.schema_arrow, columns, schema) or (check(file.metadata) if check is not None else "")
                if problem:
                    raise self.damaged(name, problem)
                return file.read(columns=None if columns is None else list(columns))

        return patient(self.file(name), read)

    def num_rows(self, name: str, check: Callable[[pq.FileMetaData], str] | None = None) -> int:
        """Return the number of rows in the footer of a Parquet file of ours; `check` and errors as in `read_table`."""

        def read() -> int:
            with self.naming_damage(name), self.open_parquet(name) as file:  # no discovery of siblings
                problem = check(file.metadata) if check is not None else ""
                if problem:
                    raise self.damaged(name, problem)
                return int(file.metadata.num_rows)

        return patient(self.file(name), read)

    def write_table(self, name: str, table: pa.Table, row_group_size: int | None = None) -> None:
        """Write a Parquet file with a checksum per page, whose cost is too small to measure."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=row_group_size, compression="zstd", write_page_checksum=True)
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def remove(self, name: str) -> None:
        """Delete the file or folder with this name, if there is one."""
        kind = file_info(self.file(name)).type
        filesystem, path = resolve(self.file(name))
        if kind == pafs.FileType.File:
            patient(self.file(name), lambda: filesystem.delete_file(path))
        elif kind == pafs.FileType.Directory:
            patient(self.file(name), lambda: filesystem.delete_dir(path))

    def delete(self, last: str) -> None:
        """Delete everything in the folder, and the file `last` when nothing else is left."""
        filesystem, _ = resolve(self.path)
        for entry in self._list():
            if entry.type == pafs.FileType.Directory:
                patient(self.path, lambda entry=entry: filesystem.delete_dir(entry.path))  # type: ignore[misc]
            elif entry.base_name != last:
                patient(self.path, lambda entry=entry: filesystem.delete_file(entry.path))  # type: ignore[misc]
        self.remove(last)

    def ensure_writable(self, dry: bool = False) -> None:
        """Check early that files can be written here.

        Args:
            dry: write nothing; look only at the folder, or at the nearest one above it that exists. On S3, nothing is checked.

        Raises:
            StorageError: no file can be written.
        """
        probe = f".tmp-probe-{uuid.uuid4().hex}"
        try:
            place = resolve(self.path)[1]
            if is_local(self.path):
                _ensure_folder(place)
            if not dry:
                self.write_bytes(probe, b"")
                self.remove(probe)
        except StorageError as error:
            raise StorageError(f"{error}; choose a --root that can be written") from None
