"""Read columns of Parquet files as class names, ids and paths."""

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
"""Words in an OSError of a Parquet reader that point to the file, not to the file system."""


@contextlib.contextmanager
def parquet_errors(path: str) -> Iterator[None]:
    """Turn errors of a Parquet reader about a damaged, encrypted or unsupported file into one line.

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
    """Find a column by its name, or a field inside structs by its names joined with dots.

    Returns:
        names from the column to the field, and the type of its values; None if there is no such column.

    Raises:
        SourceError: two columns have this name.
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
    """Return the type of the values that a dictionary or extension type stores; other types as they are."""
    while pa.types.is_dictionary(kind) or isinstance(kind, pa.BaseExtensionType):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind.storage_type
    return kind


def column_of(table: pa.Table | pa.RecordBatch, way: list[str]) -> pa.Array | pa.ChunkedArray:
    """Return the values of a column that `find_column` found. They are null if a struct around them is null."""
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
    """Return a column as Python values. Text is decoded here, because a text column may hold bytes that are not UTF-8.

    Raises:
        SourceError: text is not UTF-8.
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
    """Return the kind of labels in a column of this type: a key of `KINDS`, or "" for a column of nulls.

    Raises:
        SourceError: values of this type cannot be labels.
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
        names: class names of the numbers 0, 1, ..., if the file has them.

    Returns:
        a name per row, or None for a row without a label; and the number of rows without a label, by the value in them.

    Raises:
        SourceError: a value is not a label.
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
    """Return the class names that Hugging Face's metadata (ClassLabel) gives for a label column; None if there are none.

    Raises:
        SourceError: two numbers have the same name.
    """
    try:
        feature = json.loads((schema.metadata or {}).get(b"huggingface", b""))["info"]["features"]
        for step in way:
            feature = feature[step]
        names = feature["names"] if feature.get("_type") == "ClassLabel" else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # missing, or of another form
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
