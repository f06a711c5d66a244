"""Explanations of settings: the type, the value and the meaning, read from the source of their classes."""

from __future__ import annotations

import ast
import fnmatch
import inspect
import io
import json
import re
import textwrap
import tokenize
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from ssl_ray.config import Config

CONSTRAINTS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


class Setting(NamedTuple):
    """One setting of a recipe."""

    path: str
    value: str  # as JSON
    type: str
    meaning: str  # empty if the source says nothing


def explain(config: Config, pattern: str, prefix: str = "") -> list[Setting]:
    """List the settings of a config whose path matches, depth first.

    Args:
        pattern: names of a path, such as `optim` or `student.optim`; a glob, such as `student.*.lr`; or any part of a path.
        prefix: begin of all paths.
    """
    settings = list(_settings(config, prefix))
    if any(letter in pattern for letter in "*?["):
        return [setting for setting in settings if fnmatch.fnmatchcase(setting.path, pattern)]
    whole = [setting for setting in settings if f".{pattern}." in f".{setting.path}."]
    return whole or [setting for setting in settings if pattern in setting.path]


def _settings(config: Config, prefix: str) -> Iterator[Setting]:
    notes = _notes(type(config))
    for name in type(config).model_fields:
        value, path = getattr(config, name), f"{prefix}.{name}" if prefix else name
        if isinstance(value, Config):
            yield from _settings(value, path)
        else:
            written = json.dumps(config.model_dump(mode="json", include={name})[name])
            yield Setting(path, written, *notes.get(name, ("", "")))


@cache
def _notes(kind: type[Config]) -> dict[str, tuple[str, str]]:
    """Return the type of each field, and its meaning: the comment behind it or above it."""
    found: dict[str, tuple[str, str]] = {}
    for base in reversed(kind.__mro__):
        if not issubclass(base, Config) or base is Config:
            continue
        source = textwrap.dedent(inspect.getsource(base))
        comments = {
            token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT and not token.string.startswith("# fmt:")
        }
        body = ast.parse(source).body[0]
        assert isinstance(body, ast.ClassDef)
        for node in body.body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            lines = list(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            above: list[str] = []
            while (line := lines[0] - 1 - len(above)) in comments and comments[line][1]:
                above.insert(0, comments[line][0])
            behind = [comments[line][0] for line in lines if line in comments]
            found[node.target.id] = (_type_of(node.annotation), " ".join([*above, *behind]))
    return found


def _type_of(annotation: ast.expr) -> str:
    """Write an annotation for people: `Annotated[float, Field(gt=0)]` as `float > 0`."""
    text = ast.unparse(annotation)
    while (inner := re.search(r"Annotated\[([^\[\]]+(?:\[[^\[\]]*\])?), Field\(([^()]*)\)\]", text)) is not None:
        bounds = [item.split("=") for item in inner[2].split(", ")]
        shown = " and ".join(f"{CONSTRAINTS[key]} {value}" for key, value in bounds if key in CONSTRAINTS)
        text = text.replace(inner[0], f"{inner[1]} {shown}".strip())
    literal = re.compile(r"Literal\[([^\[\]]*)\]")
    return literal.sub(lambda match: " | ".join(match[1].split(", ")), text).replace("'", "")
