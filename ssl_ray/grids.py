"""Which trials a sweep makes: axes of values, their product, seeds; and points drawn from ranges. Numbers in, settings out."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ssl_ray.config import canonical, fingerprint, parse_assignment
from ssl_ray.errors import ConfigError
from ssl_ray.named_files import hashes_of
from ssl_ray.randomness import generator

VARIANT = "variant"
"""The axis whose values are names of groups of settings."""


@dataclass(frozen=True)
class Trial:
    """One point of a sweep, and one seed."""

    point: Mapping[str, Any]  # axis -> value, as the user wrote them
    seed: int
    changes: Mapping[str, Any] = field(default_factory=dict)  # what follows for the settings

    @property
    def name(self) -> str:
        """A folder's name: `label_fraction=0.1,init=random,seed=0`."""
        parts = [f"{axis}={shown(value)}" for axis, value in {**self.point, "seed": self.seed}.items()]
        said = ",".join(parts)
        text = re.sub(r"[^A-Za-z0-9=,._+%-]", "_", said)
        # Values that differ in a slash or a colon alone are two folders.
        return text if text == said and len(text) <= 120 else f"{text[:100]}-{fingerprint({**self.point, 'seed': self.seed})}"


def shown(value: Any) -> str:
    """A value as a person writes it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return str(value) if isinstance(value, str | int) else ",".join(f"{k}:{shown(v)}" for k, v in _items(value))


def _items(value: Any) -> list[tuple[str, Any]]:
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    return [(str(key), item) for key, item in pairs]


def parse_axis(text: str) -> tuple[str, tuple[Any, ...]]:
    """`"init=random,imagenet"` -> `("init", ("random", "imagenet"))`; values that hold commas are written as a JSON list.

    Raises:
        ConfigError: it is no axis, or one without values, or one with a value twice.
    """
    axis, separator, raw = text.partition("=")
    axis, raw = axis.strip(), raw.strip()
    if not separator or not axis:
        raise ConfigError(f"cannot read {text!r}: an axis is written as path=value,value, for example label_fraction=0.1,1.0")
    whole = parse_assignment(f"{axis}={raw}")[1] if raw.startswith("[") else None
    if isinstance(whole, list):
        values = tuple(whole)
    else:
        values = tuple(parse_assignment(f"{axis}={part}")[1] for part in raw.split(",") if part.strip())
    if not values:
        raise ConfigError(f"the axis {axis} has no values; write --grid {axis}=value,value")
    twice = {shown(value) for value in values if sum(shown(other) == shown(value) for other in values) > 1}
    if twice:
        raise ConfigError(f"the axis {axis} has {', '.join(sorted(twice))} twice; name every value once")
    return axis, values


def product(axes: Mapping[str, Sequence[Any]], seeds: Sequence[int]) -> list[Trial]:
    """Every combination, with every seed. The seed turns fastest, so that a sweep which is stopped early has whole points."""
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [Trial(point, seed) for point in points for seed in seeds]


@dataclass(frozen=True)
class Range:
    """Where a search draws from."""

    kind: str  # uniform, loguniform, integer, choice
    low: float = 0.0
    high: float = 0.0
    values: tuple[Any, ...] = ()

    def holds(self, value: Any) -> bool:
        """Whether the range could have drawn a value."""
        if self.kind == "choice":
            return value in self.values
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and (self.kind != "integer" or float(value).is_integer())

    def draw(self, share: float) -> Any:
        """The value at a share in [0, 1) of the range."""
        if self.kind == "choice":
            return self.values[int(share * len(self.values))]
        if self.kind == "loguniform":
            return math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        if self.kind == "integer":
            return int(self.low) + int(share * (int(self.high) - int(self.low) + 1))
        return self.low + share * (self.high - self.low)


def parse_range(text: str) -> tuple[str, Range]:
    """`"teacher.optim.lr=loguniform(0.01,0.5)"`; also `uniform(a,b)`, `integer(a,b)` (both ends inside), `choice(a,b,c)`.

    Raises:
        ConfigError: it is none of these, or its bounds are in the wrong order.
    """
    path, _, raw = text.partition("=")
    match = re.fullmatch(r"\s*(uniform|loguniform|integer|choice)\((.*)\)\s*", raw)
    if not path.strip() or match is None:
        raise ConfigError(
            f"cannot read {text!r}: a range is written as path=loguniform(0.01,0.5), uniform(a,b), integer(a,b) or "
            "choice(a,b,c)"
        )
    kind, inside = match.groups()
    values = tuple(parse_assignment(f"{path}={part}")[1] for part in inside.split(",") if part.strip())
    if kind == "choice":
        if not values:
            raise ConfigError(f"{path.strip()}: choice() has nothing to choose from")
        return path.strip(), Range(kind, values=values)
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    least = 0.0 if kind == "loguniform" else -math.inf
    if len(values) != 2 or len(numbers) != 2 or not least < numbers[0] < numbers[1]:
        raise ConfigError(
            f"{path.strip()}: {kind}({inside}) needs two bounds, the lower one first"
            + (" and above zero" if kind == "loguniform" else "")
        )
    return path.strip(), Range(kind, float(numbers[0]), float(numbers[1]))


def drawn(ranges: Mapping[str, Range], count: int, seed: int, axes: Mapping[str, Sequence[Any]] | None = None) -> list[Trial]:
    """Points drawn at random, each by its own address, so that a restart finds the same ones, and a longer search begins with
    them. Axes of a grid are drawn from as choices are."""
    everything = {**{axis: Range("choice", values=tuple(values)) for axis, values in (axes or {}).items()}, **ranges}
    return [
        Trial(
            {path: found.draw(float(generator(seed, "sweep", path, number).random())) for path, found in everything.items()},
            seed,
        )
        for number in range(count)
    ]


def identity(job: str, recipe: Any, seed: int, model: str | None = None) -> str:
    """What a trial computes, as a fingerprint. `model`: that of the checkpoint that is judged, where a job judges one."""
    judged = {} if model is None else {"model": model}
    files = {"files": hashes} if (hashes := hashes_of(recipe)) else {}
    return fingerprint({"job": job, "recipe": canonical(recipe), "seed": seed, **files, **judged})
