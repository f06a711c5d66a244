"""Folders, local or `s3://`, through one code path (`pyarrow.fs`).

A file appears whole or not at all: on a local disk it is written beside its name and renamed; an object store shows an
object only when its upload is complete.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ssl_ray.errors import StorageError


@lru_cache(maxsize=64)
def _filesystem(scheme_and_bucket: str) -> pafs.FileSystem:
    if not scheme_and_bucket:
        return pafs.LocalFileSystem()
    return pafs.FileSystem.from_uri(scheme_and_bucket)[0]


def resolve(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system that serves `path`, and the path inside it.

    Raises:
        StorageError: the scheme is not known to pyarrow.
    """
    if "://" not in path:
        return _filesystem(""), os.path.abspath(os.path.expanduser(path))
    scheme, _, rest = path.partition("://")
    try:
        return _filesystem(f"{scheme}://{rest.split('/', 1)[0]}"), rest.rstrip("/")
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(f"cannot open {path}: {error}; use a local path or s3://bucket/prefix") from None


def is_local(path: str) -> bool:
    return "://" not in path


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
        filesystem, path = resolve(self.file(name) if name else self.path)
        return filesystem.get_file_info(path).type != pafs.FileType.NotFound

    def names(self, suffix: str = "") -> list[str]:
        """Names of the files directly in the folder that end in `suffix`, sorted."""
        filesystem, path = resolve(self.path)
        found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        files = (info.base_name for info in found if info.type == pafs.FileType.File)
        return sorted(name for name in files if name.endswith(suffix) and not name.startswith(".tmp-"))

    def holds_more_than(self, name: str) -> bool:
        """Whether there is any file at any depth besides `name`."""
        filesystem, path = resolve(self.path)
        found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
        return any(info.type == pafs.FileType.File and info.path != f"{path}/{name}" for info in found)

    def read_bytes(self, name: str) -> bytes:
        filesystem, path = resolve(self.file(name))
        with filesystem.open_input_stream(path) as stream:
            return stream.read()

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a whole file; a reader sees the old one, or the new one, or none."""
        filesystem, path = resolve(self.file(name))
        try:
            if isinstance(filesystem, pafs.LocalFileSystem):
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
            else:
                with filesystem.open_output_stream(path) as stream:
                    stream.write(data)
        except OSError as error:
            raise StorageError(f"cannot write {self.file(name)}: {error}; choose a --root that can be written") from None

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        filesystem, path = resolve(self.file(name))
        with pq.ParquetFile(path, filesystem=filesystem) as file:  # one file, no discovery of siblings or partitions
            return file.read(columns=columns)

    def write_table(self, name: str, table: pa.Table, row_group_size: int | None = None) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=row_group_size, compression="zstd")
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        filesystem, path = resolve(self.file(name))
        if filesystem.get_file_info(path).type == pafs.FileType.File:
            filesystem.delete_file(path)

    def delete(self, last: str) -> None:
        """Delete everything in the folder, and the file `last` when nothing else is left."""
        filesystem, path = resolve(self.path)
        for entry in filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
            if entry.type == pafs.FileType.Directory:
                filesystem.delete_dir(entry.path)
            elif entry.base_name != last:
                filesystem.delete_file(entry.path)
        self.remove(last)

    def ensure_writable(self) -> None:
        """Raises StorageError now rather than after an hour of work."""
        probe = f".tmp-probe-{uuid.uuid4().hex}"
        self.write_bytes(probe, b"")
        self.remove(probe)
