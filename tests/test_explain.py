"""Settings explain themselves, from the source of their classes."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from ssl_ray.config import Config
from ssl_ray.explain import Setting, explain
from ssl_ray.recipes.noisy_student import demo, paper


class Inner(Config):
    rate: Annotated[float, Field(gt=0, le=1)] = 0.5  # of all images
    kind: Literal["a", "b"] | None = None


class Outer(Config):
    # How many there are,
    # at most.
    most: Annotated[int, Field(ge=1)] = 3  # per class
    inner: Inner = Inner()
    names: tuple[str, ...] = ("x",)  # fmt: skip


def test_a_setting_has_its_value_type_and_comments() -> None:
    assert explain(Outer(), "") == [
        Setting("most", "3", "int >= 1", "How many there are, at most. per class"),
        Setting("inner.rate", "0.5", "float > 0 and <= 1", "of all images"),
        Setting("inner.kind", "null", "a | b | None", ""),
        Setting("names", '["x"]', "tuple[str, ...]", ""),
    ]


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("teacher.optim.lr", ["teacher.optim.lr"]),
        ("optim.lr", ["teacher.optim.lr", "student.optim.lr"]),
        ("student.*.decay", ["student.schedule.decay"]),
        ("max_class", ["health.max_class_share"]),
        ("nothing", []),
    ],
)
def test_a_pattern_finds_names_globs_and_parts(pattern: str, paths: list[str]) -> None:
    assert [setting.path for setting in explain(demo(), pattern)] == paths


def test_fields_of_a_base_class_are_explained() -> None:
    (setting,) = explain(paper(), "student.schedule.length")
    assert setting.value == "700.0" or float(setting.value) > 0
    assert explain(paper(), "student.precision")[0].meaning.startswith("auto: bfloat16")
