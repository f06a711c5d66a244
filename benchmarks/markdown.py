"""Parts of the generated tables."""

from __future__ import annotations

import math
from typing import Any

NOT_YET = "Not measured yet.\n"


def conditions(record: dict[str, Any]) -> str:
    c = record["conditions"]
    gpu = f"one {c['gpu']}, " if "gpu" in c else ""
    return f"{gpu}{c['cores']} cores ({c['processor']}), Python {c['python']}, Ray {c['ray']}, torch {c['torch']}, {c['date']}"


def spread(values: list[float], sign: bool = False) -> str:
    mean, low, high = values
    if math.isnan(low):
        return f"{mean:+.2f} (one seed)" if sign else f"{mean:.2f} (one seed)"
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" if sign else f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def table(header: str, rows: list[list[str]], *notes: str) -> str:
    """A table in Markdown; the names of its columns are parted by bars."""
    names = [name.strip() for name in header.split("|")]
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n" + "".join(f"\n{note}\n" for note in notes)
