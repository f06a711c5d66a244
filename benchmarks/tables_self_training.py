"""Tables of docs/self_training.md."""

from __future__ import annotations

from typing import Any

from benchmarks.markdown import NOT_YET, conditions, spread, table
from benchmarks.record import interval, load


def values(record: dict[str, Any], arm: str, metric: str) -> list[float]:
    """A metric on test by seed, percent."""
    return [100 * run["arms"][arm][metric] for run in record["runs"]]


def low_label(recipe: str, metric: str, words: str) -> str:
    """20 % of the labels, with and without self-training."""
    record = load(f"self_training-{recipe}")
    if record is None:
        return NOT_YET
    rows = []
    for arm in record["settings"]["arms"]:
        base = arm.removesuffix("+self")
        gain = ""
        if base != arm:
            pairs = zip(values(record, arm, metric), values(record, base, metric), strict=True)
            gain = spread(list(interval([a - b for a, b in pairs])), sign=True)
        rows.append([arm, spread(list(interval(values(record, arm, metric)))), gain])
    note = f"{words} on test, percent; mean and 95 % t interval over {len(record['runs'])} seeds, gains paired by seed."
    return table(f"arm | {words} | by self-training", rows, f"{note} {conditions(record)}.")


def detection() -> str:
    return low_label("miniature-table3", "map", "AP")


def segmentation() -> str:
    return low_label("segmentation-table3", "miou", "mIoU")
