"""Folders, local or `s3://`, through one code path (`pyarrow.fs`).

A file appears whole or not at all: on a local disk it is written beside its name and renamed; an object store shows an
object only when its upload is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ssl_ray.damage import NewerError, damaged, misfit, newer, parsed, sealed, unsealed
from ssl_ray.errors import DamagedError, StorageError
from ssl_ray.filesystems import ensure_folder, explained, file_info, patient, read_file, resolve
from ssl_ray.paths import is_local


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
                ensure_folder(place)
            if not dry:
                self.write_bytes(probe, b"")
                self.remove(probe)
        except StorageError as error:
            raise StorageError(f"{error}; choose a --root that can be written") from None
