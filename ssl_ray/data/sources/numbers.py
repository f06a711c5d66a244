"""Numbers that people and tools wrote into annotation files."""

from __future__ import annotations

import re
from typing import Any

LARGEST = 1e15
"""Beyond any coordinate or area of a picture; products of two still fit into float32."""

PLAIN = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
"""Text of a number as files write it; Python's float() also takes `1_0`, `nan` and digits of other scripts."""

FLAGS = {"0": False, "1": True, "false": False, "true": True}


def read_finite(value: Any, name: str) -> float:
    """Read a number from a value of a file.

    Args:
        value: number, or text of one.
        name: of the value, for the error.

    Raises:
        ValueError: it is no number, not finite, or larger than any number of a picture.
    """
    number: Any = value
    if isinstance(value, str):
        number = float(value) if PLAIN.fullmatch(value.strip()) else None
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if is_number and -LARGEST <= number <= LARGEST:  # false for NaN
        return float(number)
    raise ValueError(f"{name} is {_shown(value)}, not a number")


def read_whole(value: Any, name: str) -> int:
    """Read a whole number from a value of a file, as `read_finite` does; 3.0 is one."""
    number = read_finite(value, name)
    if number != int(number):
        raise ValueError(f"{name} is {_shown(value)}, not a whole number")
    return int(number)


def read_flag(value: Any, name: str) -> bool:
    """Read a flag from a value of a file: 0, 1, true, false, or text of one.

    Raises:
        ValueError: it is something else.
    """
    text = str(value).strip().lower()
    if text not in FLAGS:
        raise ValueError(f"{name} is {_shown(value)}; write 0 or 1")
    return FLAGS[text]


def read_size(width: Any, height: Any, most: int) -> tuple[int, int]:
    """Read the width and height of a picture.

    Args:
        most: pixels that are allowed.

    Raises:
        ValueError: a side is no whole number from 1 on, or there are too many pixels.
    """
    size = read_whole(width, "the width"), read_whole(height, "the height")
    if min(size) < 1:
        raise ValueError(f"the size is {size[0]} x {size[1]}, and a side has at least one pixel")
    if size[0] * size[1] > most:
        raise ValueError(f"the size is {size[0]} x {size[1]}, and {most:,} pixels are allowed")
    return size


def _shown(value: Any) -> str:
    """Return a value as a short text of one line."""
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
