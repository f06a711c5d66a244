"""Frozen settings: one way to write them, one way to change them, one way to compare them.

A recipe is a Python function that returns a `Config`; a variant is `override(paper(), {"student.optim.lr": 0.1})`.
The same dotted paths serve `--set`, sweeps and tests.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema

from ssl_ray.errors import ConfigError
from ssl_ray.values import parse_json, shown, with_checks


class Config(BaseModel):
    """Base of every group of settings: frozen, and an unknown field is an error.

    Numbers are finite and no texts or truth values, texts hold no credentials: the checks of `values` are put before every
    number, truth value and text of a group, so that no field needs to ask for them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return typing.cast(CoreSchema, with_checks(handler(source)))


ConfigT = TypeVar("ConfigT", bound=Config)


def override(config: ConfigT, changes: Mapping[str, Any]) -> ConfigT:
    """A copy of `config` with dotted paths changed: `override(demo(), {"student.optim.lr": 0.1})`.

    Strings are converted to the field's type, so that a command line can be passed on as it is.

    Raises:
        ConfigError: an unknown path (the nearest known ones are named) or a value of the wrong type.
    """
    tree = config.model_dump()
    for path, value in changes.items():
        _set(type(config), tree, path, value)
    try:
        return type(config).model_validate(tree)
    except ValidationError as error:
        raise ConfigError(problems_of(error)) from None


def parse_assignment(text: str) -> tuple[str, Any]:
    """`"a.b=0.1"` -> `("a.b", 0.1)`. The value is read as JSON where it is JSON, else as a string.

    Raises:
        ConfigError: there is no `=`, or the value is JSON that holds no finite numbers.
    """
    path, separator, raw = text.partition("=")
    if not separator or not path.strip():
        raise ConfigError(f"cannot read {shown(text)}: a setting is written as path=value, for example student.optim.lr=0.1")
    literals = {"true": True, "false": False, "none": None, "null": None}
    raw = raw.strip()
    if raw.lower() in literals:
        return path.strip(), literals[raw.lower()]
    try:
        return path.strip(), parse_json(raw)
    except json.JSONDecodeError:
        return path.strip(), raw
    except ValueError as error:
        raise ConfigError(f"{path.strip()}: {error}") from None


def known_paths(config: type[Config] | Config) -> list[str]:
    """All dotted paths that `override` accepts, depth first."""
    cls = config if isinstance(config, type) else type(config)
    return list(_walk(cls, ""))


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists as one dict of dotted paths; the leaves are JSON values."""
    if isinstance(value, Config):
        value = value.model_dump(mode="json")
    if isinstance(value, Mapping) and value:
        items = value.items()
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        items = ((str(index), item) for index, item in enumerate(value))  # type: ignore[assignment]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def canonical(value: Any) -> Any:
    """`value` as plain JSON data.

    Raises:
        TypeError: it holds something without a stable identity, such as a function or an open file.
    """
    if isinstance(value, Config):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{type(value).__name__} has no stable identity and cannot be fingerprinted")


def fingerprint(value: Any) -> str:
    """Sixteen hex digits that are equal exactly where the settings are equal, on every machine."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def differences(old: Any, new: Any) -> list[str]:
    """`["optim.lr: 0.1 -> 0.2"]`: the leaves in which two nested settings differ."""
    before, after = flatten(canonical(old)), flatten(canonical(new))
    absent = "(absent)"
    return [
        f"{path}: {before.get(path, absent)} -> {after.get(path, absent)}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path, absent) != after.get(path, absent)
    ]


def _submodels(annotation: Any) -> list[type[Config]]:
    """The `Config` classes in an annotation such as `Optim`, `Optim | None`, or `MoCo | SimCLR`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    if typing.get_origin(annotation) is typing.Annotated:
        return _submodels(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [found for member in typing.get_args(annotation) for found in _submodels(member)]
    return []


def _submodel(annotation: Any, value: Any = None) -> type[Config] | None:
    """One of them: where there are several, the one whose fixed fields (such as `method`) have the values at hand."""
    found = _submodels(annotation)
    for cls in found if isinstance(value, Mapping) else []:
        fixed = {name: field.default for name, field in cls.model_fields.items() if _is_fixed(field.annotation)}
        if all(value.get(name, default) == default for name, default in fixed.items()):
            return cls
    return found[0] if found else None


def _is_fixed(annotation: Any) -> bool:
    return typing.get_origin(annotation) is typing.Literal and len(typing.get_args(annotation)) == 1


def _named_submodel(annotation: Any) -> type[Config] | None:
    """The `Config` class in `dict[str, Images]`: groups of settings that users name."""
    if typing.get_origin(annotation) is dict:
        return _submodel(typing.get_args(annotation)[1])
    return None


def _walk(cls: type[Config], prefix: str) -> Iterator[str]:
    for name, field in cls.model_fields.items():
        submodel, named = _submodel(field.annotation), _named_submodel(field.annotation)
        if named is not None:
            yield from _walk(named, f"{prefix}{name}.NAME.")
        elif submodel is None:
            yield prefix + name
        else:
            yield from _walk(submodel, f"{prefix}{name}.")


def _set(cls: type[Config], tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    node, node_cls = tree, cls
    named: type[Config] | None = None  # the group that the next word of the path gives a name to
    for name in parents:
        if named is not None:
            node, node_cls, named = node.setdefault(name, {}), named, None
            continue
        field = node_cls.model_fields.get(name)
        submodel = _submodel(field.annotation, node.get(name)) if field is not None else None
        named = _named_submodel(field.annotation) if field is not None else None
        if named is not None:
            node = node[name]
            continue
        if submodel is None:
            raise _unknown(cls, path)
        if node.get(name) is None:  # an optional group that is off: naming one of its fields switches it on
            node[name] = {key: field.default for key, field in submodel.model_fields.items() if _is_fixed(field.annotation)}
        node, node_cls = node[name], submodel
    if named is not None:
        node[leaf] = canonical(value)
        return
    field = node_cls.model_fields.get(leaf)
    if field is None:
        raise _unknown(cls, path)
    if _submodel(field.annotation) is not None and not isinstance(value, Mapping | Config | None):
        inside = ", ".join(_walk(_submodel(field.annotation), f"{path}."))  # type: ignore[arg-type]
        raise ConfigError(f"{path} is a group of settings, not a value; set one of: {inside}")
    node[leaf] = canonical(value)


NEAREST = 5
"""Settings that are named when one is mistyped."""


def _unknown(cls: type[Config], path: str) -> ConfigError:
    known = known_paths(cls)
    leaf = path.rsplit(".", 1)[-1]

    def distance(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, path, candidate).ratio()
        last = difflib.SequenceMatcher(None, leaf, candidate.rsplit(".", 1)[-1]).ratio()
        return -max(whole, 0.95 * last)

    near = ", ".join(sorted(known, key=distance)[:NEAREST])
    return ConfigError(f"unknown setting {path!r}; did you mean one of {near}? All {len(known)} settings: --settings")


def problems_of(error: ValidationError) -> str:
    """Return all problems of a validation as one line: setting, problem, and what was given."""
    problems = []
    for item in error.errors():
        # Steps of pydantic, such as `literal['sync']`, are no part of the path.
        where = ".".join(str(part) for part in item["loc"] if "[" not in str(part))
        what = item["msg"].removeprefix("Value error, ")
        given = "" if isinstance(item.get("input"), dict) or "credentials" in what else f" (given: {shown(item.get('input'))})"
        problems.append(f"{where + ': ' if where else ''}{what}{given}")
    return "; ".join(dict.fromkeys(problems))
