"""Tables of docs/knowledge_transfer.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.markdown import NOT_YET, conditions, spread, table
from benchmarks.record import interval, load

MAIN = ("random", "jigsaw", "jigsaw++", "cc+jigsaw++", "cc+vgg-jigsaw++", "cc+hog")
AGAINST = "jigsaw++"
"""Direct transfer, which clusters are measured against."""


def values(record: dict[str, Any], arm: str, column: str) -> list[float]:
    """Top-1 on test by seed, percent."""
    return [
        100 * row["value"]
        for run in record["runs"]
        for row in run["rows"]
        if (row["arm"], row["column"], row["split"]) == (arm, column, "test")
    ]


def by_column(record: dict[str, Any], arm: str) -> list[str]:
    """Mean and interval of every column of an arm."""
    return [spread(list(interval(values(record, arm, column)))) for column in columns_of(record)]


def columns_of(record: dict[str, Any]) -> list[str]:
    return list(record["runs"][0]["columns"])


def compared(first: str, rows: Callable[[dict[str, Any]], list[list[str]]], note: str, more: str = "") -> str:
    """A table of arms; `note` gets the number of seeds."""
    record = load("transfer_gain")
    if record is None:
        return NOT_YET
    header = f"{first} | {' | '.join(columns_of(record))}{more}"
    return table(header, rows(record), f"{note.format(len(record['runs']))} {conditions(record)}.")


def arms() -> str:
    note = "Top-1 on test, percent; mean and 95 % t interval over {} seeds."
    return compared("arm", lambda record: [[arm, *by_column(record, arm)] for arm in MAIN], note)


def against_direct() -> str:
    def rows(record: dict[str, Any]) -> list[list[str]]:
        def over(arm: str, column: str) -> str:
            pairs = zip(values(record, arm, column), values(record, AGAINST, column), strict=True)
            return spread(list(interval([a - b for a, b in pairs])), sign=True)

        return [[arm, *(over(arm, column) for column in columns_of(record))] for arm in MAIN if arm != AGAINST]

    return compared("arm", rows, f"Points over `{AGAINST}`, paired by seed; mean and 95 % t interval over {{}} seeds.")


def clusters() -> str:
    def rows(record: dict[str, Any]) -> list[list[str]]:
        plain = {"cluster_on": "images", "label_on": "images", "teacher": "deep"}
        found = {arm["clusters"]: name for name, arm in record["settings"]["arms"].items() if plain.items() <= arm.items()}
        return [[f"{count:,}", *by_column(record, arm), agreed(record, arm)] for count, arm in sorted(found.items())]

    def agreed(record: dict[str, Any], arm: str) -> str:
        return spread(list(interval([100 * float(run["agreement"][arm]["nmi"]) for run in record["runs"]])))

    note = "Clusters of the deeper teacher; NMI in percent, against labels that nobody used. {} seeds."
    return compared("clusters", rows, note, " | NMI")


def crossed() -> str:
    words = {"cc+vgg-jigsaw++": "clothes / clothes", "images-other": "clothes / in another look",
             "other-images": "in another look / clothes"}  # fmt: skip
    note = "Top-1 on clothes, percent, {} seeds; the pretext saw clothes alone."
    return compared(
        "clusters of / labels on", lambda record: [[text, *by_column(record, arm)] for arm, text in words.items()], note
    )


def kmeans() -> str:
    record = load("kmeans")
    if record is None:
        return NOT_YET
    seconds = {name: ", ".join(f"{value:.1f}" for value in turns) for name, turns in record["seconds"].items()}
    whole, *parts = [f"{row['peak_mb']:,.0f} MiB with {row['points_mb']:,.0f} MiB of points" for row in record["memory"]]
    rows = [
        [f"{record['iterations']} iterations, seconds by turn: ours, on a Ray actor", seconds["ours"], ""],
        ["the same: faiss.Kmeans over all points, same seeds", seconds["faiss"], ""],
        ["ours / faiss (median)", f"{record['ours_to_faiss']:.3f}", "at most 1.15"],
        ["final inertia against faiss", f"{record['inertia_gap']:+.4%}", "within 0.1 %"],
        ["scikit-learn's Lloyd, the same iterations, seconds", f"{record['sklearn_s']:.1f}", ""],
        ["scikit-learn / ours", f"{record['sklearn_to_ours']:.2f}", "at least 5"],
        ["10^9 multiply-adds a second: ours; faiss; a bare product of matrices",
         f"{record['gmac_s']:.0f}; {record['faiss_gmac_s']:.0f}; {record['matrix_product_gmac_s']:.0f}", ""],
        ["reading and centring, seconds; seeds by k-means\\|\\|, seconds",
         f"{record['prepare_s']:.1f}; {record['seeds_s']:.1f}", ""],
        ["peak of a worker that holds one file of 64", whole, ""],
        [f"peak of each of {len(parts)} workers that hold all", "; ".join(parts), "follows its shards"],
    ]  # fmt: skip
    size = f"{record['points']:,} x {record['dim']}, k = {record['k']:,}, {record['threads']} threads"
    return table("what | measured | asked", rows, f"{size}. {conditions(record)}.")
