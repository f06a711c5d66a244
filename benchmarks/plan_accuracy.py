"""A plan, and the run that it is about: python -m benchmarks.plan_accuracy

Both as whole commands; the time of a run is that of its stages (their records) and what lies between.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import save

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "days": 86400.0}
CASES = [
    ["noisy-student", "demo", "--scale", "inline"],
    ["noisy-student", "demo", "--scale", "local"],
    ["simclrv2", "demo", "--scale", "inline"],
    ["rethinking", "demo", "--scale", "inline"],
]


def seconds(text: str) -> float:
    """ "3 min 20 s" -> 200."""
    return sum(float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+) (s|min|h|days)", text))


def one(words: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "ssl_ray", *words, "--root", f"{place}/root"]
        begin = time.perf_counter()
        said = subprocess.run([*command, "--plan"], capture_output=True, text=True, check=True).stdout
        plan_s = time.perf_counter() - begin
        found = re.search(r"On this machine: ([^(]+)\(", said)
        assert found is not None, said
        time_of = r"\d[\d.]* (?:s|min|h|days)(?: \d+ (?:s|min))?"
        parts = dict(re.findall(rf"^(\S+) .*?  ({time_of})(?:  .*)?$", said, re.MULTILINE))
        begin = time.perf_counter()
        subprocess.run(command, capture_output=True, text=True, check=True)
        wall_s = time.perf_counter() - begin
        stages = {json.loads(path.read_text())["name"]: json.loads(path.read_text())["wall_s"]
                  for path in Path(f"{place}/root").rglob("_record.json")}  # fmt: skip
    predicted = seconds(found.group(1))
    run_s = sum(stages.values())
    return {
        "command": f"ssl-ray {' '.join(words)}", "predicted_s": predicted, "run_s": round(run_s, 1), "wall_s": round(wall_s, 1),
        "plan_s": round(plan_s, 1), "off": round(predicted / run_s - 1, 3),
        "stages": {name: {"predicted": parts.get(name), "run_s": round(took, 1)} for name, took in stages.items()},
    }  # fmt: skip


def main() -> None:
    cases = []
    for words in [*CASES, CASES[0]]:  # the first one again at the end: how much of it is the moment
        cases.append(one(words))
        print(json.dumps(cases[-1]), flush=True)
        save("plan_accuracy", {"cases": cases})


if __name__ == "__main__":
    main()
