"""How many labels a setting is worth: numbers in, numbers and a sentence out.

A baseline measured on several numbers of labels is a curve; made monotone and read backwards, it says how many labels it would
need for what another setting reaches.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation and 95 % t interval over seeds; without a second seed there is neither."""

    mean: float
    std: float
    low: float
    high: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Spread(mean, math.nan, math.nan, math.nan, count)
    from scipy.stats import t as student  # scipy and scikit-learn take a second to import

    std = statistics.stdev(values)
    half = float(student.ppf(0.975, count - 1)) * std / math.sqrt(count)
    return Spread(mean, std, mean - half, mean + half, count)


@dataclass(frozen=True)
class Worth:
    """What a setting with so many labels is worth in labels of the baseline."""

    labels: float
    gain: Spread  # of the setting over the baseline on the same labels and seeds, as a share
    value: float  # labels the baseline would need; inf: more than were measured; nan: fewer, or nobody knows
    low: float
    high: float
    most: float  # the largest number of labels that the baseline was measured on

    @property
    def clear(self) -> bool:
        """Whether the interval of the gain leaves zero out."""
        return self.gain.n > 1 and (self.gain.low > 0 or self.gain.high < 0)


Curve = Mapping[float, Mapping[int, float]]
"""labels -> seed -> metric"""


def worth(baseline: Curve, better: Curve) -> list[Worth]:
    """For every number of labels on which both were measured with the same seeds."""
    points = sorted((labels, spread(list(seeds.values())).mean, len(seeds)) for labels, seeds in baseline.items())
    found = []
    for labels in sorted(set(baseline) & set(better)):
        both = sorted(set(baseline[labels]) & set(better[labels]))
        if not both:
            continue
        gain = spread([better[labels][seed] - baseline[labels][seed] for seed in both])
        # From the curve, not from the point: where one measured number dips, the gain must not be read off another branch.
        value, low, high = (labels_for(points, labels, step) for step in (gain.mean, gain.low, gain.high))
        found.append(Worth(labels, gain, value, low, high, points[-1][0]))
    return found


def labels_for(points: Sequence[tuple[float, float, int]], labels: float, gain: float) -> float:
    """Labels at which a curve, made monotone, lies higher by a gain than at `labels`; between points it is straight over the
    logarithm of labels.

    Args:
        points: labels, metric and seeds, labels ascending.
        labels: one of them.

    Returns:
        inf where the curve ends below, nan where it begins above, or the gain is no number.
    """
    if math.isnan(gain):
        return math.nan
    from sklearn.isotonic import IsotonicRegression

    x, metric, seeds = (np.array(column, float) for column in zip(*points, strict=True))
    curve = IsotonicRegression().fit_transform(x, metric, sample_weight=seeds) if len(x) > 1 else metric
    target = float(curve[np.searchsorted(x, labels)]) + gain
    if target > curve[-1] + 1e-12:
        return math.inf
    if target < curve[0] - 1e-12:
        return math.nan
    right = int(np.argmax(curve >= target - 1e-12))
    if right == 0 or curve[right] == curve[right - 1]:
        return float(x[right])
    share = (target - curve[right - 1]) / (curve[right] - curve[right - 1])
    return float(math.exp(math.log(x[right - 1]) + share * (math.log(x[right]) - math.log(x[right - 1]))))


def in_words(found: Worth, better: str, baseline: str) -> str:
    """One sentence that promises no more than the seeds show."""
    head = f"With {found.labels:,.0f} labels {better}"
    gain = f"{100 * found.gain.mean:+.1f} points"
    if found.gain.n > 1:
        gain += f" [{100 * found.gain.low:+.1f}, {100 * found.gain.high:+.1f}], {found.gain.n} seeds"
        if not found.clear:
            return f"{head} cannot be told from {baseline} ({gain})."
        if found.gain.mean < 0:
            return f"{head} is worse than {baseline} ({gain})."
    else:
        gain += ", one seed: no interval"
        if found.gain.mean <= 0:
            return f"{head} is no better than {baseline} ({gain})."
    if math.isinf(found.value):
        return f"{head} is worth more than the {found.most:,.0f} labels that {baseline} was measured on ({gain})."
    between = f" [{_bound(found.low)}, {_bound(found.high)}]" if found.gain.n > 1 else ""
    return f"{head} is worth {_round(found.value):,.0f} labels{between} of {baseline} ({gain})."


def _round(labels: float) -> float:
    """Two digits are all that such a curve gives."""
    return round(labels, 1 - math.floor(math.log10(labels))) if labels >= 10 else round(labels)


def _bound(labels: float) -> str:
    if math.isinf(labels):
        return "more than measured"
    return "fewer than measured" if math.isnan(labels) else f"{_round(labels):,.0f}"
