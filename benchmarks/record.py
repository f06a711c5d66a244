"""Where a benchmark leaves what it measured, and under which conditions."""

from __future__ import annotations

import datetime
import json
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ssl_ray.machine import usable_cores
from ssl_ray.worth import spread

RECORDS = Path(__file__).parent / "records"

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where the loops compute that we are measured against; `local()` and `inline()` take a GPU where there is one, too."""


def conditions() -> dict[str, Any]:
    """Machine and versions; no name and no path of the machine."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    commit = ""
    if shutil.which("git"):
        command = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.date.today().isoformat(),
        "cores": usable_cores(),
        "processor": model,
        **gpu,
        "python": platform.python_version(),
        **{name: version(name) for name in ("ray", "torch")},
        "commit": commit,
    }


def by_device(name: str) -> str:
    """A record of its own for machines with a GPU."""
    return f"{name}-gpu" if DEVICE.type == "cuda" else name


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


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and the bounds of its 95 % t interval."""
    found = spread(values)
    return found.mean, found.low, found.high
