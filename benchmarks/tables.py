"""Writes the tables of README.md and docs/ from `benchmarks/records/`: python -m benchmarks.tables [--check]

A table stands between `<!-- generated: benchmarks/tables.py NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import tables_pretraining as pretraining
from benchmarks import tables_self_training as self_training
from benchmarks import tables_sweeps as sweeps
from benchmarks import tables_transfer as transfer
from benchmarks.markdown import NOT_YET, conditions, spread, table
from benchmarks.record import load

REPO = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "docs/noisy_student.md",
    "docs/labelling.md",
    "docs/simclrv2.md",
    "docs/hpt.md",
    "docs/knowledge_transfer.md",
    "docs/self_training.md",
    "docs/sweeps.md",
    "docs/cluster.md",
)
BLOCK = re.compile(r"(<!-- generated: benchmarks/tables\.py ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
NAMES = {
    "demo": "`sample:mnist5k`, 100 labels",
    "fashion": "`sample:fashion`, 1,000 labels",
    "fashion-same-net": "the same, teacher of the student's net and noise",
}


def gains() -> list[tuple[str, dict[str, Any]]]:
    found = [(name, load(f"noisy_student_gain-{name}")) for name in NAMES]
    return [(name, record) for name, record in found if record is not None]


def gain() -> str:
    if not gains():
        return NOT_YET
    rows = []
    for name, record in gains():
        n, seeds = record["runs"][0]["n"], len(record["runs"])

        def row(model: str, accuracy: str, over: str, tail: tuple[str, str] = (str(seeds), f"{n:,}"), data: str = name) -> None:
            rows.append([NAMES[data], model, accuracy, over, *tail])

        for model, values in record["accuracy"].items():
            shown = spread(record["gain"][model], sign=True) if model in record["gain"] else ""
            row("student's net and noise, labels only" if model == "labels-only" else model, spread(values), shown)
        row("best student", "", spread(record["gain"]["best"], sign=True))
        if "over labels-only" in record["gain"]:
            row("last student over its own net on labels only", "", spread(record["gain"]["over labels-only"], sign=True))
    return table(
        "data | model | top-1 on test, % | gain over the teacher, points | seeds | test images",
        rows,
        f"Mean and 95 % t interval over seeds; labels are drawn anew for each. {conditions(gains()[0][1])}.",
    )


def throughput() -> str:
    record = load("train_throughput")
    if record is None:
        return NOT_YET
    rows = [
        [name, f"{row['ratio']:.3f}", ", ".join(map(str, row["ours"])), ", ".join(map(str, row["other"]))]
        for name, row in record["pairs"].items()
    ]
    notes = [f"The demo's student, batch {record['batch']}, {record['steps']} steps a run. {conditions(record)}."]
    if cores := record.get("cores"):
        notes.insert(
            0,
            f"While one worker trains through Ray it keeps {cores['worker']:.2f} cores busy, and Ray's own processes "
            f"{cores['ray']:.2f}.",
        )
    return table("pair | ratio (median) | ours, images/s | other, images/s", rows, *notes)


def stages() -> str:
    record = load("stage_cost")
    if record is None:
        return NOT_YET
    rows = [[f"`{r['stage']}`", f"{r['wall_s']:.1f}", f"{r['work_s']:.1f}", f"{r['beyond_s']:.1f}"] for r in record["stages"]]
    note = f"The first stage that needs Ray starts it. {conditions(record)}."
    return table("stage | wall s | work s | beyond s", rows, note)


def demo() -> str:
    record = load("demo_from_clone")
    if record is None:
        return NOT_YET
    total, install = f"{record['total_s'] / 60:.1f} minutes", f"{record['install_s']:.0f} s"
    return f"From `git clone` to the report: {total}, {install} of it installation, empty caches. {conditions(record)}.\n"


def summary() -> str:
    if not gains():
        return NOT_YET
    rows = []
    for name, record in gains():
        last = sorted(model for model in record["accuracy"] if model.startswith("student-"))[-1]
        means = [f"{record['accuracy'][model][0]:.2f}" for model in ("teacher", last)]
        rows.append([NAMES[name], *means, spread(record["gain"][last], sign=True), str(len(record["runs"]))])
    rows += self_training.few_labels()
    return table("data | teacher, % | last student, % | gain, points (95 % interval) | seeds", rows)


def labelling() -> str:
    record = load("label_throughput")
    if record is None:
        return NOT_YET
    rates = [[name, ", ".join(f"{value:,.0f}" for value in values)] for name, values in record["images_per_s"].items()]
    spent = [
        [name, *(f"{row.get(key, 0.0):.1f}" for key in ("start_s", "read_s", "decode_s", "predict_s", "write_s", "wall_s"))]
        for name, row in record["spent"].items()
    ]
    return "\n".join(
        [
            table("side | images/s, whole, by turn", rates),
            table("ratio | ", [[name, f"{value:.3f}"] for name, value in record["ratios"].items()]),
            table(
                "ours: where the time goes, s (threads add up) | start | read | decode | predict | write | wall",
                spent,
                f"{record['images']:,} images, {record['net']} at {record['pixels']} pixels. {conditions(record)}.",
            ),
        ]
    )


def label_scale() -> str:
    record = load("label_scale")
    if record is None:
        return NOT_YET
    rows = []
    if grown := record.get("growth"):
        small, large = grown["rows"]["20000"], grown["rows"]["200000"]
        memory = f"{small['peak_mib']:,.0f} -> {large['peak_mib']:,.0f} MiB: {grown['memory_ratio']:.2f} times"
        seconds = f"{small['seconds']:.0f} -> {large['seconds']:.0f} s: {grown['time_ratio']:.1f} times"
        rows.append(["ten times the images: memory of all processes", memory, "1.10"])
        rows.append(["ten times the images: time", seconds, "10.5"])
    if restart := record.get("restart"):
        took = f"{restart['restart_s']:.0f} of {restart['whole_s']:.0f} s: {restart['share']:.1%}"
        rows.append([f"restart with nine of ten label files done, {restart['images']:,} images", took, "15 %"])
        if "ratio_to_bare" in restart:
            words = f"images per second of the bare loop, {restart['images']:,} images, both with the start of their processes"
            rows.append([words, f"{restart['ratio_to_bare']:.3f}", "0.90"])
    if planned := record.get("planning"):
        took = f"{planned['listing_s'] + planned['plan_s']:.1f} s, {planned['peak_mib']:,} MiB"
        rows.append([f"plan over {planned['files']:,} label files", took, "30 s, 500 MB"])
    if chosen := record.get("selection"):
        took = f"{chosen['ratio']:.2f} times its time, {chosen['peak_mib']:,} MiB"
        rows.append([f"selection over {chosen['labels']:,} labels, against DuckDB's counts", took, "2 times, 1 GB"])
    return table("what | measured | asked", rows, f"{conditions(record)}.")


def faults() -> str:
    record = load("faults")
    if record is None:
        return NOT_YET
    rows = [[row["fault"], str(row["tries"]), str(row["survived"])] for row in record.get("tests", [])]
    if found := record.get("bucket"):
        whole = int(found["labels"] == found["distinct"] == found["images"])
        words = (
            f"{found['images']:,} images in a bucket, root in the bucket, job and Ray killed {len(found['kills'])} times: "
            f"{found['labels']:,} labels, {found['distinct']:,} of them distinct"
        )
        rows.append([words, "1", str(whole)])
    return table("fault | tries | survived", rows, f"{conditions(record)}.")


TABLES: dict[str, Callable[[], str]] = {
    "gain": gain,
    "throughput": throughput,
    "stages": stages,
    "demo": demo,
    "summary": summary,
    "labelling": labelling,
    "label_scale": label_scale,
    "faults": faults,
    "simclrv2_curve": pretraining.simclrv2_curve,
    "simclrv2_at": pretraining.simclrv2_at,
    "simclrv2_longer": pretraining.simclrv2_longer,
    "pretrain_throughput": partial(pretraining.throughput, "simclr"),
    "hpt_strategies": pretraining.hpt_strategies,
    "hpt_steps": pretraining.hpt_steps,
    "hpt_curve": pretraining.hpt_curve,
    "hpt_robustness": pretraining.hpt_robustness,
    "moco_throughput": partial(pretraining.throughput, "moco"),
    "scene_throughput": self_training.throughput,
    **self_training.SELF_TRAINING,
    "transfer_arms": transfer.arms,
    "transfer_gain": transfer.against_direct,
    "transfer_clusters": transfer.clusters,
    "transfer_crossed": transfer.crossed,
    "kmeans": transfer.kmeans,
    **sweeps.SWEEPS,
}


def rendered(page: Path) -> str:
    return BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], page.read_text())


def main() -> None:
    stale = [name for name in PAGES if rendered(REPO / name) != (REPO / name).read_text()]
    if "--check" in sys.argv:
        sys.exit(f"stale tables in {', '.join(stale)}; run make tables" if stale else 0)
    for name in stale:
        (REPO / name).write_text(rendered(REPO / name))
        print(f"wrote the tables of {name}")


if __name__ == "__main__":
    main()
