"""Errors for damaged files that this program wrote, with the command that computes them again, and digests of documents."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ssl_ray.config import fingerprint
from ssl_ray.errors import DamagedError
from ssl_ray.values import parse_json

RECORD = "_record.json"
STARTED = "_started.json"
DIGEST = "digest"
"""Key under which a sealed document keeps the fingerprint of everything else in it."""


def damaged(path: str, problem: str, read: Callable[[str], bytes]) -> DamagedError:
    """Build the error for a damaged file.

    Args:
        path: the file.
        problem: what is wrong; the message reads "{path} is damaged: {problem}".
        read: returns the bytes of a file; used to find the name of the stage that wrote this one.
    """
    name = _stage_of(path, read)
    again = f"--rerun {name} in the job that wrote it" if name else "--rerun and the name of its stage"
    return DamagedError(
        f"{path} is damaged: {' '.join(problem.split())[:300]}; restore it from a backup, or compute it again with {again}"
    )


def _stage_of(path: str, read: Callable[[str], bytes]) -> str:
    """Find the name of the stage that a file belongs to.

    The nearest readable mark or record above the file names it. If the file is itself a mark or record, its path below the
    root, the folder with a lock, is the name.
    """
    folder = path
    while (folder := folder.rpartition("/")[0]) and not folder.endswith("/"):
        for name in (STARTED, RECORD):
            try:
                value = parsed(read(f"{folder}/{name}"))
            except (OSError, ValueError):
                continue
            if isinstance(value, dict) and isinstance(value.get("name"), str):
                return str(value["name"])
        if path.endswith((RECORD, STARTED)):
            with contextlib.suppress(OSError, ValueError):
                read(f"{folder}/_lock.json")
                return path.removeprefix(f"{folder}/").rpartition("/")[0]
    return ""


def parsed(data: bytes) -> Any:
    """Parse a JSON file that this program wrote.

    Raises:
        ValueError: the data is not JSON; the message says why.
    """
    if not data.strip():
        raise ValueError("it is empty")
    try:
        return parse_json(data)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error})") from None


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with a digest of its content, so that `unsealed` notices any later change."""
    return {**document, DIGEST: fingerprint(document)}


def unsealed(document: Any, fields: Collection[str]) -> dict[str, Any]:
    """Return a sealed document without its digest.

    Args:
        fields: keys that it must have, and no others; empty: any keys.

    Raises:
        NewerError: it has unknown keys.
        ValueError: it is not a sealed document, keys are missing, or the content does not match the digest.
    """
    if not isinstance(document, dict):
        raise ValueError(f"it holds {_kind(document)} instead of an object")
    unknown = sorted(document.keys() - {*fields, DIGEST}) if fields else []
    if unknown:
        raise NewerError(", ".join(map(repr, unknown[:5])))
    missing = sorted({*fields, DIGEST} - document.keys())
    if missing:
        raise ValueError(f"it lacks {', '.join(map(repr, missing[:5]))}")
    content = {key: value for key, value in document.items() if key != DIGEST}
    if document[DIGEST] != fingerprint(content):
        raise ValueError("its content does not match its digest: it was changed after it was written")
    return content


class NewerError(ValueError):
    """A document with keys that only a newer version knows; the message names them."""


def newer(path: str, keys: str) -> DamagedError:
    """Build the error for a file that a newer version wrote."""
    return DamagedError(
        f"{path} was written by a newer version of ssl_ray: {keys} is not known here; update ssl_ray, or choose another --root"
    )


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a text", type(None): "null", bool: "a truth value"}
    return kinds.get(type(value), "a number")


def misfit(found: pa.Schema, columns: Sequence[str] | None, schema: pa.Schema | None) -> str:
    """Say what is wrong with the columns of a Parquet file; return "" if they fit."""
    wanted = list(columns) if columns is not None else (schema.names if schema is not None else [])
    missing = [name for name in wanted if name not in found.names]
    if missing:
        return f"it lacks the columns {', '.join(missing)}"
    for name in wanted:
        if schema is not None and name in schema.names and found.field(name).type != schema.field(name).type:
            return f"its column {name} holds {found.field(name).type}, not {schema.field(name).type}"
    return ""


def out_of_range(footer: pq.FileMetaData, limits: Mapping[str, tuple[int, int]]) -> str:
    """Say what is wrong with the smallest and largest values in a Parquet footer; return "" if they fit.

    Args:
        limits: smallest and largest allowed value, by column.
    """
    names = [footer.schema.column(number).path for number in range(footer.num_columns)]
    for name, (low, high) in limits.items():
        for group in range(footer.num_row_groups if name in names else 0):
            statistics = footer.row_group(group).column(names.index(name)).statistics
            if statistics is None or not statistics.has_min_max:
                continue
            if type(statistics.min) is not int:
                return f"its column {name} holds no whole numbers"
            if not low <= statistics.min <= statistics.max <= high:
                return f"its name says {name} {low} to {high}, and it holds {statistics.min} to {statistics.max}"
    return ""


MODEL_KEYS = {"net", "hog", "task", "head", "projection", "puzzle", "probed", "clusters", "layer", "method", "decoding",
              "preprocess", "num_classes", "classes"}  # fmt: skip
"""All keys of a `model.json`."""


def model_problem(description: Any) -> str:
    """Say what is wrong with the content of a `model.json`, without building its net; return "" if nothing is."""
    if not isinstance(description, dict):
        return "it does not describe a model"
    kinds = {"preprocess": dict, "num_classes": int, "classes": list}
    bad = [key for key, kind in kinds.items() if type(description.get(key)) is not kind]
    bad += [key for key in ("net", "hog", "head", "clusters") if type(description.get(key, {})) is not dict]
    if bad:
        return f"it lacks {', '.join(bad)}, or holds another type there"
    classes = description["classes"]
    if not all(isinstance(name, str) for name in classes):
        return "its classes are no texts"
    count = description["clusters"].get("k") if "clusters" in description else description["num_classes"]
    return f"it names {len(classes)} classes, and the model knows {count}" if classes and len(classes) != count else ""
