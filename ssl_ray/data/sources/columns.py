"""Columns of Parquet files, read as class names, ids and paths."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ssl_ray.data.sources.listing import escaped
from ssl_ray.errors import SourceError

DAMAGE = re.compile(r"thrift|crypt|orrupt|ompress|arquet|[Pp]age|[Uu]nexpected end")
"""Words in an OSError of a Parquet reader that blame the file, not the file system."""


@contextlib.contextmanager
def parquet_errors(path: str) -> Iterator[None]:
    """Turn what a Parquet reader says of a damaged, encrypted or unsupported file into one line.

    Raises:
        SourceError: the file cannot be read.
    """
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and not DAMAGE.search(str(error)):
            raise
        said = " ".join(str(error).split())[:200]
        raise SourceError(f"{path} cannot be read as Parquet: {said}; take it out, or write it again") from None


def find_column(schema: pa.Schema, name: str, path: str) -> tuple[list[str], pa.DataType] | None:
    """Find a column by its name, or a field inside structs by its names with dots between.

    Returns:
        names from the column to the field, and the type of its values; None where there is no such column.

    Raises:
        SourceError: two columns have the name.
    """
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        way = [".".join(parts[:end]), *parts[end:]]
        fields: list[pa.Field] = list(schema)
        for step in way:
            named = [field for field in fields if field.name == step]
            if len(named) > 1:
                raise SourceError(f"{path} has {len(named)} columns named {step!r}; rename one, or name another column")
            if not named:
                break
            kind = plain(named[0].type)
            fields = [kind.field(i) for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []
        else:
            return way, kind
    return None


def plain(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values that a dictionary or an extension type stores."""
    while pa.types.is_dictionary(kind) or isinstance(kind, pa.BaseExtensionType):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind.storage_type
    return kind


def column_of(table: pa.Table | pa.RecordBatch, way: list[str]) -> pa.Array | pa.ChunkedArray:
    """Return the values that `find_column` found; null also where a struct around them is null."""
    column = table.column(way[0])
    return pc.struct_field(column, way[1:]) if len(way) > 1 else column


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()


def is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return (
        types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind) or kind == pa.binary_view()
    ) and not types.is_decimal(kind)


def values_of(column: pa.ChunkedArray, where: str) -> list[Any]:
    """Return a column as Python values. Text is decoded here: a file may hold bytes that are not UTF-8 in a text column.

    Raises:
        SourceError: text that is not UTF-8.
    """
    kind = plain(column.type)
    if kind != column.type:
        column = pa.chunked_array([_storage(chunk) for chunk in column.chunks], kind)
    if not (is_text(kind) or is_bytes(kind)):
        return list(column.to_pylist())
    found: list[Any] = []
    for row, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
        try:
            found.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            raise SourceError(f"{where}: row {row} holds {value[:20]!r}, which is not text in UTF-8; correct it") from None
    return found


def _storage(chunk: pa.Array) -> pa.Array:
    while isinstance(chunk, pa.DictionaryArray | pa.ExtensionArray):
        chunk = chunk.dictionary_decode() if isinstance(chunk, pa.DictionaryArray) else chunk.storage
    return chunk


KINDS = {"text": "text", "number": "numbers", "truth": "true or false"}


def label_kind(kind: pa.DataType, where: str) -> str:
    """Tell how a column of this type is read as labels: a key of `KINDS`, or "" for a column of nulls.

    Raises:
        SourceError: the type is no label.
    """
    if pa.types.is_null(kind):
        return ""
    if is_text(kind) or is_bytes(kind):
        return "text"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    if pa.types.is_boolean(kind):
        return "truth"
    hint = ""
    if pa.types.is_struct(kind):
        hint = f", or name one of its fields, as in images.columns.label={where.rsplit(' ', 1)[-1]}.{kind.field(0).name}"
    raise SourceError(
        f"{where} holds {kind}, and a label is one text, one whole number, or true or false, per image; write such a column "
        f"and name it with --set images.columns.label=...{hint}"
    )


def class_names(column: pa.ChunkedArray, names: list[str] | None, where: str) -> tuple[list[str | None], Counter[str]]:
    """Read a column as names of classes.

    Args:
        names: of the numbers 0, 1, ..., where the file tells them.

    Returns:
        a name per row, or None for a row without a label; and how many of those there are, by what stands there.

    Raises:
        SourceError: values that are no labels.
    """
    kind = label_kind(plain(column.type), where)
    found: list[str | None] = []
    missing: Counter[str] = Counter()
    for row, value in enumerate(values_of(column, where)):
        text: str | None = None
        if value is None:
            missing["null"] += 1
        elif kind == "truth":
            text = str(value).lower()
        elif kind == "text":
            text = value.strip() or None
            missing["empty"] += text is None
        elif math.isnan(value):
            missing["NaN"] += 1
        elif value == -1:
            missing["-1"] += 1
        elif math.isinf(value) or value != int(value) or value < 0:
            raise SourceError(
                f"{where}: row {row} holds {value}; classes are whole numbers from 0 on, and -1 is no label; write the names "
                "of the classes as text"
            )
        elif names is None:
            text = str(int(value))
        elif value < len(names):
            text = names[int(value)]
        else:
            raise SourceError(f"{where}: row {row} holds {int(value)}, and the file's metadata names {len(names)} classes")
        found.append(text)
    return found, +missing


def names_in_metadata(schema: pa.Schema, way: list[str], path: str) -> list[str] | None:
    """Return the names that Hugging Face's metadata (ClassLabel) gives the numbers of a label column.

    Raises:
        SourceError: two numbers have one name.
    """
    try:
        feature = json.loads((schema.metadata or {}).get(b"huggingface", b""))["info"]["features"]
        for step in way:
            feature = feature[step]
        names = feature["names"] if feature.get("_type") == "ClassLabel" else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # not there, or of another kind
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        return None
    names = [name.strip() for name in names]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise SourceError(
            f"{path}: the metadata gives two numbers the class name {escaped(twice[0])!r}; write the names as text"
        )
    return names
