"""Checks of values that enter this program, in settings and in JSON files: numbers, truth values and texts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

from pydantic_core import CoreSchema, core_schema

from ssl_ray.redaction import carries_secrets

DEEPEST = 50
"""Largest depth of lists and objects in JSON."""

LARGEST = 2**64
"""Whole numbers must be smaller in magnitude."""

BEYOND = "whole numbers have at most 64 bits"


def parse_json(text: str | bytes) -> Any:
    """Parse JSON whose numbers are finite and fit into 64 bits, and whose texts are Unicode without zero bytes.

    Raises:
        json.JSONDecodeError: it is not JSON.
        ValueError: it is JSON with other numbers or texts, or nested too deeply; the message says which.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    pending = [(value, 0)]
    while pending:  # a loop, because recursion would fail on the depth that is checked
        item, depth = pending.pop()
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        if isinstance(item, str):
            check_text(item)
        elif isinstance(item, list):
            pending += [(inner, depth + 1) for inner in item]
        elif isinstance(item, dict):
            pending += [(inner, depth + 1) for pair in item.items() for inner in pair]
    return value


def check_number(value: Any) -> Any:
    """Return a value that may be a number; truth values and texts are refused.

    Raises:
        ValueError: it is a truth value or text, not finite, or does not fit into 64 bits.
    """
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no number")
    if isinstance(value, str):
        raise ValueError("give a number, not text")
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise ValueError(BEYOND)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("give a finite number")
    return value


def check_truth(value: Any) -> Any:
    """Return a truth value; numbers and texts such as 1 and "yes" are refused.

    Raises:
        ValueError: it is not true or false.
    """
    if not isinstance(value, bool):
        raise ValueError("give true or false")
    return value


def check_text(value: Any) -> Any:
    """Return a value; if it is text, it must have no zero bytes and no lone surrogates.

    Raises:
        ValueError: the text cannot be written to a UTF-8 file.
    """
    if isinstance(value, str) and ("\0" in value or not (value.isascii() or _is_unicode(value))):
        raise ValueError("the text is not UTF-8, or holds a zero byte")
    return value


def check_setting(value: Any) -> Any:
    """Return the value of a setting: text, a number, or a nested group of them. Records and reports repeat it.

    Raises:
        ValueError: it holds credentials, text that `check_text` refuses, or a number that `check_number` refuses.
    """
    if isinstance(value, str):
        if carries_secrets(value):
            raise ValueError(
                "credentials and options of a server do not belong into a setting, where records would keep them; set "
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL"
            )
        check_text(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_setting(key)
            check_setting(item)
    elif isinstance(value, list | tuple):
        for item in value:
            check_setting(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        check_number(value)
    return value


CHECKS = {"int": check_number, "float": check_number, "bool": check_truth, "str": check_setting, "any": check_setting}
INSIDE = ("schema", "items_schema", "values_schema", "definitions")
BY_NAME = ("fields", "choices")


def with_checks(schema: Any) -> Any:
    """Return a pydantic schema that runs `CHECKS` before it validates numbers, truth values and texts."""
    if isinstance(schema, list | tuple):
        return type(schema)(with_checks(item) for item in schema)
    if not isinstance(schema, dict) or schema.get("type") == "function-before":
        return schema
    if (check := CHECKS.get(str(schema.get("type")))) is not None:
        return core_schema.no_info_before_validator_function(check, cast(CoreSchema, schema))
    found = {key: with_checks(value) if key in INSIDE else value for key, value in schema.items()}
    for key in BY_NAME:
        if isinstance(schema.get(key), dict):
            found[key] = {name: with_checks(field) for name, field in schema[key].items()}
        elif key in schema:
            found[key] = with_checks(schema[key])
    return found


def shown(value: Any) -> str:
    """Return a value as errors show it: of long text only the length, of large numbers no digits."""
    if isinstance(value, str) and len(value) > LONGEST_TEXT_SHOWN:
        return f"text of {len(value):,} characters"
    if isinstance(value, int) and abs(value) >= LARGEST:
        return "a larger number"
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


LONGEST_SHOWN = 60
LONGEST_TEXT_SHOWN = 16
"""Characters. Longer text may be an access key or a token, which have 20 and more."""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no finite number")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError("a number is larger than any finite one")
    return value


def _whole(digits: str) -> int:
    if len(digits) > len(str(LARGEST)) + 1 or abs(value := int(digits)) >= LARGEST:
        raise ValueError(BEYOND)
    return value
