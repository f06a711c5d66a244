"""Tables of docs/knowledge_transfer.md."""

from __future__ import annotations

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


def arms() -> str:
    record = load("transfer_gain")
    if record is None:
        return NOT_YET
    columns = record["runs"][0]["columns"]
    rows = [[arm, *(spread(list(interval(values(record, arm, column)))) for column in columns)] for arm in MAIN]
    note = f"Top-1 on test, percent; mean and 95 % t interval over {len(record['runs'])} seeds. {conditions(record)}."
    return table(f"arm | {' | '.join(columns)}", rows, note)


def against_direct() -> str:
    record = load("transfer_gain")
    if record is None:
        return NOT_YET
    columns = record["runs"][0]["columns"]
    rows = []
    for arm in MAIN:
        if arm == AGAINST:
            continue
        cells = [
            [a - b for a, b in zip(values(record, arm, column), values(record, AGAINST, column), strict=True)]
            for column in columns
        ]
        rows.append([arm, *(spread(list(interval(cell)), sign=True) for cell in cells)])
    note = f"Points over `{AGAINST}`, paired by seed; mean and 95 % t interval over {len(record['runs'])} seeds."
    return table(f"arm | {' | '.join(columns)}", rows, note)


def clusters() -> str:
    record = load("transfer_gain")
    if record is None:
        return NOT_YET
    columns = record["runs"][0]["columns"]
    counts = {arm["clusters"]: name for name, arm in record["settings"]["arms"].items()
              if arm["teacher"] == "deep" and (arm["cluster_on"], arm["label_on"]) == ("images", "images")}  # fmt: skip
    rows = []
    for count, arm in sorted(counts.items()):
        agreed = [100 * float(run["agreement"][arm]["nmi"]) for run in record["runs"]]
        cells = [spread(list(interval(values(record, arm, column)))) for column in columns]
        rows.append([f"{count:,}", *cells, spread(list(interval(agreed)))])
    note = f"Clusters of the deeper teacher; NMI in percent, against labels that nobody used. {len(record['runs'])} seeds."
    return table(f"clusters | {' | '.join(columns)} | NMI", rows, note)


def crossed() -> str:
    record = load("transfer_gain")
    if record is None:
        return NOT_YET
    columns = record["runs"][0]["columns"]
    words = {"cc+vgg-jigsaw++": "clothes / clothes", "images-other": "clothes / in another look",
             "other-images": "in another look / clothes"}  # fmt: skip
    rows = [[text, *(spread(list(interval(values(record, arm, column)))) for column in columns)] for arm, text in words.items()]
    note = f"Top-1 on clothes, percent, {len(record['runs'])} seeds; the pretext saw clothes alone."
    return table(f"clusters of / labels on | {' | '.join(columns)}", rows, note)


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
