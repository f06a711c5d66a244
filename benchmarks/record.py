"""Where a benchmark leaves what it measured, and under which conditions."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import statistics
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"


def conditions() -> dict[str, Any]:
    """Machine and versions; no name and no path of the machine."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "processor": model,
        "python": platform.python_version(),
        **{name: version(name) for name in ("ray", "torch")},
        "commit": commit.stdout.strip(),
    }


def save(name: str, result: dict[str, Any]) -> Path:
    RECORDS.mkdir(exist_ok=True)
    path = RECORDS / f"{name}.json"
    whole = path.with_suffix(".part")  # hours of work lie in a record: a kill leaves the old one or the new one
    whole.write_text(json.dumps({"conditions": conditions(), **result}, indent=2) + "\n")
    whole.replace(path)
    return path


def load(name: str) -> dict[str, Any] | None:
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and the bounds of its 95 % t interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = T95.get(len(values) - 1, 1.96) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half
