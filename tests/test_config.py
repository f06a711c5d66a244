from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from ssl_ray.config import Config, differences, fingerprint, known_paths, override, parse_assignment
from ssl_ray.errors import ConfigError


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
