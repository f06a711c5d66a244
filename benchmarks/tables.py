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
PAGES = ("README.md", "docs/noisy_student.md")
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


TABLES: dict[str, Callable[[], str]] = {
    "gain": gain,
    "throughput": throughput,
    "stages": stages,
    "demo": demo,
    "summary": summary,
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
