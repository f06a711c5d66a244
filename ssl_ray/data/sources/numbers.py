"""Numbers in annotation files, as people and tools write them."""

from __future__ import annotations

import re
from typing import Any

LARGEST = 1e15
"""Largest number. No coordinate or area of a picture is larger, and products of two still fit into float32."""

PLAIN = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
"""Text of a number. Stricter than Python's float(), which also takes `1_0`, `nan` and digits of other scripts."""

FLAGS = {"0": False, "1": True, "false": False, "true": True}


def read_finite(value: Any, name: str) -> float:
    """Read a number from a value of a file.

    Args:
        value: a number, or a number as text.
        name: name of the value, for the error.

    Raises:
        ValueError: it is not a number, not finite, or beyond `LARGEST`.
    """
    number: Any = value
    if isinstance(value, str):
        number = float(value) if PLAIN.fullmatch(value.strip()) else None
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if is_number and -LARGEST <= number <= LARGEST:  # false for NaN
        return float(number)
    raise ValueError(f"{name} is {_shown(value)}, not a number")


def read_whole(value: Any, name: str) -> int:
    """Read a whole number from a value of a file, as `read_finite` does; 3.0 is whole."""
    number = read_finite(value, name)
    if number != int(number):
        raise ValueError(f"{name} is {_shown(value)}, not a whole number")
    return int(number)


def read_flag(value: Any, name: str) -> bool:
    """Read a flag from a value of a file: 0, 1, true or false, also as text.

    Raises:
        ValueError: it is not one of them.
    """
    text = str(value).strip().lower()
    if text not in FLAGS:
        raise ValueError(f"{name} is {_shown(value)}; write 0 or 1")
    return FLAGS[text]


def read_size(width: Any, height: Any, most: int) -> tuple[int, int]:
    """Read the width and height of a picture.

    Args:
        most: largest number of pixels.

    Raises:
        ValueError: a side is not a whole number of at least 1, or there are too many pixels.
    """
    size = read_whole(width, "the width"), read_whole(height, "the height")
    if min(size) < 1:
        raise ValueError(f"the size is {size[0]} x {size[1]}, and a side has at least one pixel")
    if size[0] * size[1] > most:
        raise ValueError(f"the size is {size[0]} x {size[1]}, and {most:,} pixels are allowed")
    return size


def _shown(value: Any) -> str:
    """Return a value as short text in one line."""
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
