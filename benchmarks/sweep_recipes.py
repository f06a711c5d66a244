"""Runs a named sweep and keeps what it found: python -m benchmarks.sweep_recipes demo [--work FOLDER] [WORD...]"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import save
from ssl_ray.recipes.sweep import RECIPES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(RECIPES))
    parser.add_argument("--work", help="folder that stays, so that a killed run goes on")
    options, words = parser.parse_known_args()  # the rest are words for ssl-ray sweep
    with tempfile.TemporaryDirectory() as place:
        root = Path(options.work or place) / options.name
        command = [sys.executable, "-m", "ssl_ray", "sweep", options.name, "--root", str(root), *words]
        begin = time.perf_counter()
        subprocess.run(command, check=True)
        wall_s = time.perf_counter() - begin
        save(f"sweep-{options.name}", found(root, words, wall_s))


def found(root: Path, words: list[str], wall_s: float) -> dict[str, Any]:
    """What a finished sweep left in its root, in short."""
    results = json.loads((root / "report/_record.json").read_text())["results"]
    trials = json.loads((root / "results/trials.json").read_text())
    return {
        "words": words,
        "changed": f" with `{' '.join(words)}`" if words else "",
        "answer": results["answer"],
        "metric": results["metric"],
        "table": [{key: row[key] for key in ("setting", "shown", "gain", "seeds", "mean", "std")} for row in results["table"]],
        "seeds": max(row["seeds"] for row in results["table"]),
        "trials": len(trials),
        "failed": results["failed"],
        "wall_s": round(wall_s, 1),
    }


if __name__ == "__main__":
    main()
