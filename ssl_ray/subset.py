"""Draws of labels, and of test and validation images, by class. A smaller draw of labels is part of a larger one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from ssl_ray.config import Config
from ssl_ray.errors import SourceError
from ssl_ray.randomness import generator


class SubsetConfig(Config):
    """Some of the labels: a count, or a share. Of one seed, the smaller subset is part of the larger."""

    count: Annotated[int, Field(ge=1)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    balanced: bool = True  # as many of every class; False: one of every class, the others as they come (HPT)
    seed: int = 0

    @model_validator(mode="after")
    def _one(self) -> SubsetConfig:
        if (self.count is None) == (self.share is None):
            raise ValueError("give a count of labels, or a share, and not both")
        return self


def draw_subset(labels: np.ndarray, config: SubsetConfig | None) -> np.ndarray:
    """Positions of the labels to use, ascending; all of them without a config.

    Raises:
        SourceError: more labels than there are, or fewer than one a class.
    """
    if config is None:
        return np.arange(len(labels))
    count = config.count if config.count is not None else round((config.share or 0.0) * len(labels))
    classes = len(np.unique(labels))
    if not classes <= count <= len(labels):
        given = (
            f"{count:,} labels"
            if config.share is None
            else f"{config.share:.2%} of {len(labels):,} labels, which are {count:,},"
        )
        raise SourceError(
            f"{given} cannot be drawn from {len(labels):,} of {classes:,} classes; take between {classes:,} and {len(labels):,}"
        )
    if not config.balanced:
        return one_of_each(labels, count, generator(config.seed, "labels as they come"))
    return stratified(labels, count, generator(config.seed, "labels"))


def one_of_each(labels: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """`count` positions, ascending: one of every class, the rest at random. A smaller draw is part of a larger one."""
    order = draw.permutation(len(labels))
    first = order[np.unique(labels[order], return_index=True)[1]]
    rest = order[~np.isin(order, first)]
    return np.sort(np.concatenate([first, rest])[:count])


def stratified(labels: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """`count` positions, as equally many of every class as there are, in ascending order.

    Classes take turns, the members of each in a drawn order, so that a smaller draw from the same generator is part of a
    larger one; what does not divide goes to the first classes.
    """
    turns = []
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        turns.append(np.stack([np.arange(len(members)), np.full(len(members), label), members]))
    order = np.concatenate(turns, axis=1)
    chosen = order[2, np.lexsort((order[1], order[0]))][:count]
    return np.sort(chosen)


def num_spare(labels: np.ndarray) -> int:
    """Return the number of images that can be taken while every class keeps one."""
    return len(labels) - len(np.unique(labels))


def proportional(labels: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """Draw `count` positions, at most `num_spare(labels)`, in proportion to the sizes of the classes, in ascending order.

    Shares are rounded by largest remainders. Every class keeps one member. If `count` allows it, every class of two or more
    gives one. If all classes have the same size, the positions are those of `stratified`.
    """
    classes, size = np.unique(labels, return_counts=True)
    quota = _quotas(size, count)
    taken = [np.empty(0, np.int64)]
    taken += [draw.permutation(np.flatnonzero(labels == c))[:q] for c, q in zip(classes, quota, strict=True)]
    return np.sort(np.concatenate(taken))


def _quotas(size: np.ndarray, count: int) -> np.ndarray:
    """Split `count` over classes by their size, int64 [classes]; every class keeps one, and gives one if `count` allows."""
    size = size.astype(np.int64)
    most = size - 1
    total = max(int(size[most > 0].sum()), 1)
    least = np.minimum(most, 1 if count >= (most > 0).sum() else 0)
    quota = np.clip(count * size // total, least, most)
    while (missing := count - quota.sum()) != 0:
        # Remainders in units of 1/total. The largest one comes first; of equal ones, the first class.
        short = count * size - quota * total
        if missing > 0:
            quota[np.argmax(np.where(quota < most, short, np.iinfo(np.int64).min))] += 1
        else:
            quota[np.argmin(np.where(quota > least, short, np.iinfo(np.int64).max))] -= 1
    return quota


def sparing(classes: Sequence[Collection[str | int]], count: int, order: np.ndarray) -> np.ndarray:
    """Take `count` positions so that the other images still show every class where possible. Return them ascending.

    Args:
        classes: classes in every image.
        order: a permutation of the positions; earlier ones are taken first.
    """
    left = Counter(name for names in classes for name in names)
    taken: list[int] = []
    last: list[int] = []  # each is the last image with some class
    for position in order.tolist():
        if len(taken) == count:
            break
        if any(left[name] == 1 for name in classes[position]):
            last.append(position)
            continue
        taken.append(position)
        left.subtract(classes[position])
    return np.sort(np.array([*taken, *last][:count], np.int64))
