"""A look at the beginning of a source: a plan need not list a hundred million files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")

FILES = 2
"""Parquet and tar files that a look opens."""

_most: ContextVar[int | None] = ContextVar("most", default=None)
_seen: ContextVar[dict[str, float] | None] = ContextVar("seen", default=None)


@contextlib.contextmanager
def at_most(images: int) -> Iterator[dict[str, float]]:
    """Inside, a folder is listed until it has shown so many images; of Parquet and tar files only the first are opened.

    Yields:
        by source that was cut: how many times as large it is, as far as a listing says; inf where it does not.
    """
    cut: dict[str, float] = {}
    tokens = _most.set(images), _seen.set(cut)
    try:
        yield cut
    finally:
        _most.reset(tokens[0])
        _seen.reset(tokens[1])


def enough(source: str, images: int) -> bool:
    """Whether a folder's listing may stop here."""
    most, cut = _most.get(), _seen.get()
    if most is None or cut is None or images < most:
        return False
    cut[source] = float("inf")
    return True


def first(source: str, files: Sequence[Item]) -> Sequence[Item]:
    """The files to open: all, or some of the beginning."""
    cut = _seen.get()
    if cut is None or len(files) <= FILES:
        return files
    cut[source] = cut.get(source, 1.0) * len(files) / FILES
    return files[:FILES]
