"""Grids, ranges and points."""

from __future__ import annotations

import math

import pytest

from ssl_ray.errors import ConfigError
from ssl_ray.grids import Range, Trial, drawn, parse_axis, parse_range, product


def test_an_axis_is_read_as_settings_are() -> None:
    assert parse_axis("init=random,imagenet") == ("init", ("random", "imagenet"))
    assert parse_axis("a.b=0.01, 1,true,none") == ("a.b", (0.01, 1, True, None))
    assert parse_axis("nets=[[1, 2], [3]]") == ("nets", ([1, 2], [3]))


@pytest.mark.parametrize(
    ("text", "said"),
    [("labels", "path=value,value"), ("labels=", "has no values"), ("labels=1,2,1", "1 twice"), ("=1,2", "path=value,value")],
)
def test_axes_that_are_none(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_axis(text)


def test_every_combination_with_every_seed_and_names_of_their_own() -> None:
    trials = product({"init": ("random", "imagenet"), "share": (0.1, 1.0)}, range(3))
    assert len(trials) == 12
    assert len({trial.name for trial in trials}) == 12
    assert trials[0].name == "init=random,share=0.1,seed=0"
    assert [trial.seed for trial in trials[:3]] == [0, 1, 2]  # whole points first
    long = [Trial({"net": "x" * 200, "n": n}, 0).name for n in range(2)]
    assert len(set(long)) == 2
    assert max(map(len, long)) <= 120


def test_a_name_is_a_folder() -> None:
    assert "/" not in Trial({"images.labeled": "s3://a/b"}, 0).name


def test_values_that_differ_in_a_sign_that_folders_lack_are_two_trials() -> None:
    assert len({Trial({"init": value}, 0).name for value in ("a/b", "a:b", "a_b")}) == 3


def test_what_a_range_holds() -> None:
    lr = Range("loguniform", 0.01, 0.5)
    assert lr.holds(0.01)
    assert lr.holds(0.5)
    assert not lr.holds(0.6)
    assert not lr.holds("0.1")
    assert Range("integer", 1, 10).holds(3)
    assert not any(Range("integer", 1, 10).holds(value) for value in (3.7, True, 11))
    assert Range("choice", values=("a", 1)).holds("a")
    assert not Range("choice", values=("a", 1)).holds("b")


def test_ranges() -> None:
    path, found = parse_range("lr=loguniform(0.01, 1.0)")
    assert path == "lr"
    assert found.draw(0.5) == pytest.approx(0.1)
    assert parse_range("n=integer(1,3)")[1].draw(0.999) == 3
    assert parse_range("n=uniform(-1,3)")[1].draw(0.25) == 0.0
    assert parse_range("a=choice(x,2)")[1].values == ("x", 2)


@pytest.mark.parametrize(
    "text", ["lr", "lr=0.1", "lr=uniform(1)", "lr=uniform(2,1)", "lr=loguniform(0,1)", "lr=choice()", "lr=gauss(0,1)"]
)
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_range(text)


def test_a_longer_search_begins_with_the_shorter_one() -> None:
    ranges = {"lr": Range("loguniform", 1e-3, 1.0), "kind": Range("choice", values=("a", "b"))}
    few, many = drawn(ranges, 3, 7), drawn(ranges, 20, 7)
    assert many[:3] == few
    assert len({trial.point["lr"] for trial in many}) == 20
    logs = sorted(math.log10(trial.point["lr"]) for trial in drawn(ranges, 400, 7))
    assert logs[200] == pytest.approx(-1.5, abs=0.2)  # even over the logarithm
    assert {trial.point["kind"] for trial in many} == {"a", "b"}
