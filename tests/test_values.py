from __future__ import annotations

import json

import pytest

from ssl_ray.values import DEEPEST, parse_json, shown


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("NaN", "NaN is no finite number"),
        ('{"a": [-Infinity]}', "-Infinity is no finite number"),
        ("[1e400]", "larger than any finite one"),
        ("9" * 5000, "64 bits"),
        (str(2**64), "64 bits"),
        (str(-(2**64)), "64 bits"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "levels deep"),
        ('{"a":' * 60 + "1" + "}" * 60, "levels deep"),
        (r'"\ud800"', "not UTF-8"),
        (r'{"\u0000": 1}', "zero byte"),
    ],
    ids=lambda text: text[:20],
)
def test_json_without_numbers_or_text_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as error:
        parse_json(text)
    assert not isinstance(error.value, json.JSONDecodeError)
    assert len(str(error.value)) < 100


@pytest.mark.parametrize("text", ['{"a": [1, 2.5, null, true, "\\u00e9\\ud83d\\ude00"]}', str(2**64 - 1), "1e308", "-0.0"])
def test_json_is_parsed_as_ever(text: str) -> None:
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [("fast", "'fast'"), ("x" * 40, "text of 40 characters"), (10**100, "a larger number"), ([1] * 1000, "[1, 1")],
)
def test_long_values_are_shown_by_their_length(value: object, text: str) -> None:
    assert text in shown(value)
    assert len(shown(value)) < 70
