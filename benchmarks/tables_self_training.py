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
    said = " ".join(worth(record))
    note = f"{words} on test, percent; mean and 95 % t interval over {len(record['runs'])} seeds, gains paired by seed."
    return table(f"arm | {words} | by self-training", rows, said, f"{note} {conditions(record)}.")


def worth(record: dict[str, Any]) -> list[str]:
    """Precision and recall of the pseudo-labels that the selection keeps, against hidden labels, mean over seeds."""
    least = record["settings"]["selection"]["min_confidence"]
    noun = {"detection": "boxes", "segmentation": "pixels"}[record["settings"]["images"]["task"]]
    found = []
    for arm in [curve["arm"] for curve in record["runs"][0]["precision"]]:
        curves = [curve["rows"] for run in record["runs"] for curve in run["precision"] if curve["arm"] == arm]
        rows = [row for curve in curves for row in curve if abs(row["threshold"] - least) < 1e-6]
        precision, recall = (sum(row[key] for row in rows) / len(rows) for key in ("precision", "recall"))
        found.append(
            f"`{arm}`: pseudo-{noun} over {least:g} have a precision of {precision:.1%} and a recall of {recall:.1%}, "
            "against labels that nobody used."
        )
    return found


def detection() -> str:
    return low_label("miniature-table3", "map", "AP")


def segmentation() -> str:
    return low_label("segmentation-table3", "miou", "mIoU")
