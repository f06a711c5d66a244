from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from ssl_ray.config import Config, differences, fingerprint, known_paths, override, parse_assignment
from ssl_ray.errors import ConfigError
from ssl_ray.settings.training import TrainConfig
from ssl_ray.settings.views import Preprocess, RandAugmentConfig, SimCLRViewConfig
from ssl_ray.stages.export import ExportConfig


class Inner(Config):
    lr: float = 0.1
    steps: int = 3


class Outer(Config):
    inner: Inner = Inner()
    maybe: Inner | None = None
    name: str = "a"
    sizes: tuple[int, ...] = (1, 2)


class Deep(Config):
    outer: Outer | None = None


def test_override_changes_one_leaf_and_leaves_the_original() -> None:
    old = Outer()
    new = override(old, {"inner.lr": 0.2, "sizes": [3]})
    assert (new.inner.lr, new.inner.steps, new.sizes) == (0.2, 3, (3,))
    assert old.inner.lr == 0.1


def test_override_switches_an_optional_group_on() -> None:
    assert override(Outer(), {"maybe.steps": 7}).maybe == Inner(steps=7)
    assert override(Deep(), {"outer.inner.steps": 7}).outer == Outer(inner=Inner(steps=7))


def test_strings_of_a_command_line_become_the_field_s_type() -> None:
    assert override(Outer(), dict([parse_assignment("inner.steps=12")])).inner.steps == 12
    assert parse_assignment("a.b=none") == ("a.b", None)
    assert parse_assignment("a=hello=x") == ("a", "hello=x")


def test_an_unknown_path_names_the_nearest_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        override(Outer(), {"inner.lrr": 1})
    listed = str(error.value).split("one of ")[1].split("?")[0].split(", ")
    assert listed[0] == "inner.lr"
    assert len(listed) == 5
    assert set(listed) <= set(known_paths(Outer))
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [("inner.lr", "fast", "inner.lr"), ("inner", 3, "is a group"), ("inner.lr.x", 3, "unknown"), ("name", 3, "name")],
)
def test_ill_typed_values_name_the_path(path: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        override(Outer(), {path: value})


class Kinds(Config):
    real: float = 1.0
    whole: int = 1
    truth: bool = False
    text: str = ""
    either: Literal["sync"] | Annotated[int, Field(ge=1)] = "sync"
    several: tuple[float, ...] = ()
    anything: dict[str, Any] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("real", float("nan"), "finite"),
        ("real", float("inf"), "finite"),
        ("real", True, "true is no number"),
        ("real", "1.5", "give a number"),
        ("real", 10**400, "64 bits"),
        ("whole", float("inf"), "finite"),
        ("whole", 64.5, "integer"),
        ("whole", "1_0", "give a number"),
        ("whole", False, "false is no number"),
        ("whole", 2**64, "64 bits"),
        ("truth", 1, "true or false"),
        ("truth", "yes", "true or false"),
        ("text", "a\0", "zero byte"),
        ("text", "\ud800", "UTF-8"),
        ("text", "s3://me:Pa55word@b/x", "credentials"),
        ("either", True, "true is no number"),
        ("several", [1.0, float("nan")], r"several\.1: give a finite"),
        ("anything", {"a": [float("inf")]}, "finite"),
        ("anything", {"a": {"b": "s3://me:Pa55word@b/x"}}, "credentials"),
    ],
)
def test_every_field_takes_values_of_its_kind_alone(path: str, value: object, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        override(Kinds(), {path: value})
    assert str(error.value).startswith(path)
    assert "Pa55word" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "text",
    ["real=Infinity", "real=1e400", "several=[NaN]", f"whole={'9' * 5000}", f"whole={'[' * 100_000}"],
    ids=lambda text: text[:20],
)
def test_an_assignment_is_no_number_without_a_traceback(text: str) -> None:
    with pytest.raises(ConfigError, match=text.partition("=")[0]) as error:
        override(Kinds(), dict([parse_assignment(text)]))
    assert len(str(error.value)) < 100


def test_whole_numbers_may_be_written_as_floats_and_the_other_way_round() -> None:
    found = override(Kinds(), {"whole": 64.0, "real": 3, "either": 4})
    assert (found.whole, found.real, found.either) == (64, 3.0, 4)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        (Preprocess, "std", [0, 1, 1]),
        (Preprocess, "std", [-1, 1, 1]),
        (Preprocess, "std", [1e-300, 1, 1]),
        (Preprocess, "mean", [1e30, 0, 0]),
        (SimCLRViewConfig, "sigma", [2, 1]),
        (SimCLRViewConfig, "sigma", [0, 1]),
        (RandAugmentConfig, "translate", -1),
        (RandAugmentConfig, "cutout", -1),
        (TrainConfig, "batch_norm", 0),
        (ExportConfig, "min_score", 1.5),
    ],
)
def test_numbers_have_bounds(kind: type[Config], path: str, value: object) -> None:
    with pytest.raises(ConfigError, match=path):
        override(kind(), {path: value})


def test_an_assignment_without_a_value() -> None:
    with pytest.raises(ConfigError, match="path=value"):
        parse_assignment("student.lr")


def test_a_fingerprint_is_equal_where_the_settings_are() -> None:
    assert fingerprint(Outer()) == fingerprint(override(Outer(), {"inner.lr": 0.1}))
    assert fingerprint(Outer()) != fingerprint(override(Outer(), {"inner.lr": 0.2}))
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_what_has_no_identity_is_refused() -> None:
    with pytest.raises(TypeError, match="stable identity"):
        fingerprint({"f": lambda: 1})


def test_differences_name_the_leaf() -> None:
    changed = differences({"config": Outer()}, {"config": override(Outer(), {"inner.lr": 0.2})})
    assert changed == ["config.inner.lr: 0.1 -> 0.2"]


def test_a_config_is_frozen_and_closed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().name = "b"  # type: ignore[misc]
    with pytest.raises(ValueError, match="extra"):
        Outer(unknown=1)  # type: ignore[call-arg]


class Fast(Config):
    kind: Literal["fast"] = "fast"
    speed: int = 1


class Slow(Config):
    kind: Literal["slow"] = "slow"
    patience: int = 1


class Both(Config):
    one: Annotated[Fast | Slow, Field(discriminator="kind")] = Fast()
    maybe: Annotated[Fast | Slow, Field(discriminator="kind")] | None = None
    named: dict[str, Fast] = Field(default_factory=dict)


class TestUnionsAndNames:
    def test_a_path_goes_into_the_member_at_hand(self) -> None:
        slow = override(Both(), {"one": {"kind": "slow"}})
        assert override(slow, {"one.patience": 7}).one == Slow(patience=7)
        with pytest.raises(ConfigError, match=r"unknown setting 'one\.speed'"):
            override(slow, {"one.speed": 7})

    def test_an_optional_union_is_switched_on(self) -> None:
        assert override(Both(), {"maybe.speed": 3}).maybe == Fast(speed=3)

    def test_a_path_goes_through_a_name(self) -> None:
        two = override(Both(), {"named.a": {"speed": 2}, "named.b.speed": 3})
        assert two.named == {"a": Fast(speed=2), "b": Fast(speed=3)}
        assert override(two, {"named.a.speed": 4}).named["a"] == Fast(speed=4)
        assert "named.NAME.speed" in known_paths(two)
        with pytest.raises(ConfigError, match=r"unknown setting 'named\.a\.sped'"):
            override(two, {"named.a.sped": 4})
