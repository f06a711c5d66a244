"""Writes the tables of README.md and docs/ from `benchmarks/records/`: python -m benchmarks.tables [--check]

A table stands between `<!-- generated: benchmarks/tables.py NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import load

REPO = Path(__file__).parent.parent
PAGES = ("README.md", "docs/noisy_student.md", "docs/labelling.md")
BLOCK = re.compile(r"(<!-- generated: benchmarks/tables\.py (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NAMES = {
    "demo": "`sample:mnist5k`, 100 labels",
    "fashion": "`sample:fashion`, 1,000 labels",
    "fashion-same-net": "the same, teacher of the student's net and noise",
}
NOT_YET = "Not measured yet.\n"


def conditions(record: dict[str, Any]) -> str:
    c = record["conditions"]
    return f"{c['cores']} cores ({c['processor']}), Python {c['python']}, Ray {c['ray']}, torch {c['torch']}, {c['date']}"


def gains() -> list[tuple[str, dict[str, Any]]]:
    found = [(name, load(f"noisy_student_gain-{name}")) for name in NAMES]
    return [(name, record) for name, record in found if record is not None]


def spread(values: list[float], sign: bool = False) -> str:
    mean, low, high = values
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" if sign else f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def gain() -> str:
    if not gains():
        return NOT_YET
    lines = [
        "| data | model | top-1 on test, % | gain over the teacher, points | seeds | test images |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, record in gains():
        n, seeds = record["runs"][0]["n"], len(record["runs"])
        for model, values in record["accuracy"].items():
            shown = spread(record["gain"][model], sign=True) if model in record["gain"] else ""
            words = "student's net and noise, labels only" if model == "labels-only" else model
            lines.append(f"| {NAMES[name]} | {words} | {spread(values)} | {shown} | {seeds} | {n:,} |")
        lines.append(f"| {NAMES[name]} | best student | | {spread(record['gain']['best'], sign=True)} | {seeds} | {n:,} |")
        if "over labels-only" in record["gain"]:
            over = spread(record["gain"]["over labels-only"], sign=True)
            lines.append(f"| {NAMES[name]} | last student over its own net on labels only | | {over} | {seeds} | {n:,} |")
    lines.append(f"\nMean and 95 % t interval over seeds; labels are drawn anew for each. {conditions(gains()[0][1])}.")
    return "\n".join(lines) + "\n"


def throughput() -> str:
    record = load("train_throughput")
    if record is None:
        return NOT_YET
    lines = ["| pair | ratio (median) | ours, images/s | other, images/s |", "| --- | --- | --- | --- |"]
    for name, row in record["pairs"].items():
        lines.append(
            f"| {name} | {row['ratio']:.3f} | {', '.join(map(str, row['ours']))} | {', '.join(map(str, row['other']))} |"
        )
    if cores := record.get("cores"):
        lines.append(
            f"\nWhile one worker trains through Ray it keeps {cores['worker']:.2f} cores busy, and Ray's own processes "
            f"{cores['ray']:.2f}."
        )
    lines.append(f"\nThe demo's student, batch {record['batch']}, {record['steps']} steps a run. {conditions(record)}.")
    return "\n".join(lines) + "\n"


def stages() -> str:
    record = load("stage_cost")
    if record is None:
        return NOT_YET
    lines = ["| stage | wall s | work s | beyond s |", "| --- | --- | --- | --- |"]
    lines += [f"| `{r['stage']}` | {r['wall_s']:.1f} | {r['work_s']:.1f} | {r['beyond_s']:.1f} |" for r in record["stages"]]
    lines.append(f"\nThe first stage that needs Ray starts it. {conditions(record)}.")
    return "\n".join(lines) + "\n"


def demo() -> str:
    record = load("demo_from_clone")
    if record is None:
        return NOT_YET
    total, install = f"{record['total_s'] / 60:.1f} minutes", f"{record['install_s']:.0f} s"
    return f"From `git clone` to the report: {total}, {install} of it installation, empty caches. {conditions(record)}.\n"


def summary() -> str:
    if not gains():
        return NOT_YET
    lines = [
        "| data | teacher, % | last student, % | gain, points (95 % interval) | seeds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, record in gains():
        last = sorted(model for model in record["accuracy"] if model.startswith("student-"))[-1]
        row = [NAMES[name], f"{record['accuracy']['teacher'][0]:.2f}", f"{record['accuracy'][last][0]:.2f}"]
        lines.append(f"| {' | '.join(row)} | {spread(record['gain'][last], sign=True)} | {len(record['runs'])} |")
    return "\n".join(lines) + "\n"


def labelling() -> str:
    record = load("label_throughput")
    if record is None:
        return NOT_YET
    lines = ["| side | images/s, whole, by turn |", "| --- | --- |"]
    lines += [
        f"| {name} | {', '.join(f'{value:,.0f}' for value in values)} |" for name, values in record["images_per_s"].items()
    ]
    lines += ["", "| ratio | |", "| --- | --- |"]
    lines += [f"| {name} | {value:.3f} |" for name, value in record["ratios"].items()]
    lines += ["", "| ours: where the time goes, s (threads add up) | start | read | decode | predict | write | wall |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for name, row in record["spent"].items():
        cells = [row.get(key, 0.0) for key in ("start_s", "read_s", "decode_s", "predict_s", "write_s", "wall_s")]
        lines.append(f"| {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    lines.append(f"\n{record['images']:,} images, {record['net']} at {record['pixels']} pixels. {conditions(record)}.")
    return "\n".join(lines) + "\n"


def label_scale() -> str:
    record = load("label_scale")
    if record is None:
        return NOT_YET
    lines = ["| what | measured | asked |", "| --- | --- | --- |"]
    if grown := record.get("growth"):
        small, large = grown["rows"]["20000"], grown["rows"]["200000"]
        lines.append(
            f"| ten times the images: memory of all processes | {small['peak_mib']:,.0f} -> {large['peak_mib']:,.0f} MiB: "
            f"{grown['memory_ratio']:.2f} times | 1.10 |"
        )
        lines.append(
            f"| ten times the images: time | {small['seconds']:.0f} -> {large['seconds']:.0f} s: "
            f"{grown['time_ratio']:.1f} times | 10.5 |"
        )
    if restart := record.get("restart"):
        lines.append(
            f"| restart with nine of ten label files done, {restart['images']:,} images | {restart['restart_s']:.0f} of "
            f"{restart['whole_s']:.0f} s: {restart['share']:.1%} | 15 % |"
        )
        if "ratio_to_bare" in restart:
            lines.append(
                f"| images per second of the bare loop, {restart['images']:,} images, both with the start of their processes | "
                f"{restart['ratio_to_bare']:.3f} | 0.90 |"
            )
    if planned := record.get("planning"):
        seconds = planned["listing_s"] + planned["plan_s"]
        lines.append(
            f"| plan over {planned['files']:,} label files | {seconds:.1f} s, {planned['peak_mib']:,} MiB | 30 s, 500 MB |"
        )
    if chosen := record.get("selection"):
        lines.append(
            f"| selection over {chosen['labels']:,} labels, against DuckDB's counts | {chosen['ratio']:.2f} times its time, "
            f"{chosen['peak_mib']:,} MiB | 2 times, 1 GB |"
        )
    lines.append(f"\n{conditions(record)}.")
    return "\n".join(lines) + "\n"


def faults() -> str:
    record = load("faults")
    if record is None:
        return NOT_YET
    lines = ["| fault | tries | survived |", "| --- | --- | --- |"]
    lines += [f"| {row['fault']} | {row['tries']} | {row['survived']} |" for row in record.get("tests", [])]
    if found := record.get("bucket"):
        whole = int(found["labels"] == found["distinct"] == found["images"])
        lines.append(
            f"| {found['images']:,} images in a bucket, root in the bucket, job and Ray killed {len(found['kills'])} times: "
            f"{found['labels']:,} labels, {found['distinct']:,} of them distinct | 1 | {whole} |"
        )
    lines.append(f"\n{conditions(record)}.")
    return "\n".join(lines) + "\n"


TABLES: dict[str, Callable[[], str]] = {
    "gain": gain,
    "throughput": throughput,
    "stages": stages,
    "demo": demo,
    "summary": summary,
    "labelling": labelling,
    "label_scale": label_scale,
    "faults": faults,
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
