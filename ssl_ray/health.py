"""Whether labels are worth training on, in plain sentences. Numbers in, a verdict out; a gate stops a job before it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ssl_ray.config import Config
from ssl_ray.errors import HealthError

Share = Annotated[float, Field(ge=0, le=1)]


class HealthConfig(Config):
    """The gates. They decide nothing about what is computed, so that moving one computes nothing anew."""

    # Of all pseudo-labels, by one class; far from its share of the labels; 1: not asked.
    max_class_share: Annotated[float, Field(gt=0, le=1)] = 0.9
    min_confidence: Share = 0.0  # mean over all images
    min_precision: Share = 0.0  # of the kept labels, measured on held-out labels; 0: not asked


def describe(
    classes: Sequence[str],
    per_class: Sequence[int],
    mean_confidence: float,
    labeled: dict[str, int] | None = None,
    noun: str = "images",
) -> dict[str, Any]:
    """What there is to know about a set of pseudo-labels.

    Args:
        per_class: images by predicted class; or boxes, or pixels.
        labeled: labeled images by class name, where there are any.
        noun: what is counted.

    Returns:
        mean confidence, the largest class with its share, classes that got nothing, and the distance of the two class
        distributions (total variation, 0 to 1).
    """
    counts = np.asarray(per_class, np.float64)
    share = counts / max(1.0, counts.sum())
    largest = int(share.argmax())
    found: dict[str, Any] = {
        "mean_confidence": float(mean_confidence),
        "noun": noun,
        "num_classes": len(classes),
        "largest_class": classes[largest],
        "largest_share": float(share[largest]),
        "classes_without_labels": [name for name, count in zip(classes, counts, strict=True) if not count],
    }
    if labeled:
        known = np.array([labeled.get(name, 0) for name in classes], np.float64)
        known /= max(1.0, known.sum())
        found["labeled_share_of_largest"] = float(known[largest])
        found["class_distance"] = float(np.abs(known - share).sum() / 2)
    return found


def of_kept(
    found: dict[str, Any], classes: Sequence[str], kept: Sequence[int], labeled: dict[str, int] | None
) -> dict[str, Any]:
    """The same of what a selection keeps: a detector says very many boxes that no student ever sees.

    Args:
        found: of all pseudo-labels (`describe`), some of whose first classes (the ground of masks) may be left out.
        classes, kept: all classes, and how many of each are kept.
        labeled: as for `describe`.
    """
    ground = len(classes) - int(found["num_classes"])
    return describe(classes[ground:], kept[ground:], found["mean_confidence"], labeled, found["noun"])


def check_labels(found: dict[str, Any], config: HealthConfig) -> None:
    """Raises HealthError if one class swallows nearly all images, or the labeler is hardly ever sure."""
    share, expected = found["largest_share"], found.get("labeled_share_of_largest", 0.0)
    several = found.get("num_classes", 2) > 1  # else one class has all, and rightly so
    if several and share > config.max_class_share >= expected:
        known = f" (of people's labels {expected:.0%})" if "labeled_share_of_largest" in found else ""
        raise HealthError(
            f"the labels are not worth training on: {share:.1%} of the {found.get('noun', 'images')} were given to the one "
            f"class {found['largest_class']!r}{known}; train a better teacher, or, if it is true, allow it with "
            f"--set health.max_class_share={min(1.0, share + 0.01):.2f}"
        )
    if found["mean_confidence"] < config.min_confidence:
        raise HealthError(
            f"the labels are not worth training on: the mean confidence is {found['mean_confidence']:.2f}, under the floor of "
            f"{config.min_confidence:g}; train a better teacher, or lower health.min_confidence"
        )


def check_precision(precision: float | None, count: int, config: HealthConfig) -> None:
    """Raises HealthError if the kept labels, measured on held-out images, are wrong too often.

    Args:
        precision: of the held-out images over the thresholds; None if there is none.
        count: how many those are.
    """
    if not config.min_precision:
        return
    if precision is None:
        raise HealthError(
            "the precision of the labels cannot be measured: no held-out image is over the thresholds; lower "
            "selection.min_confidence, give more with images.val_images, or set health.min_precision=0"
        )
    if precision < config.min_precision:
        raise HealthError(
            f"the labels are not worth training on: of {count} held-out images over the thresholds {precision:.1%} are labeled "
            f"right, under the floor of {config.min_precision:g}; raise selection.min_confidence, train a better teacher, or "
            "lower health.min_precision"
        )
