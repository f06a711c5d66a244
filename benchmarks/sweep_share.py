"""What a sweep of twelve trials that share a teacher costs, against the sum of the work that is truly different:

    python -m benchmarks.sweep_share

The whole command is timed: Python, Ray, Tune, trials, report.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import save

GRIDS = ["--grid", "student.optim.lr=0.03,0.05,0.1,0.2", "--grid", "student.view.randaugment.magnitude=3,6,10"]
WORDS = ["noisy_student:demo", *GRIDS, "--set", "generations=1"]


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "ssl_ray", "sweep", *WORDS, "--root", f"{place}/root"]
        begin = time.perf_counter()
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        wall_s = time.perf_counter() - begin
        root = Path(place) / "root"
        trials = [json.loads(path.read_text()) for path in root.glob("trials/*/trial.json")]
        different = {(name, part["fingerprint"]): part["wall_s"] for trial in trials for name, part in trial["stages"].items()}
        begin = time.perf_counter()
        subprocess.run(command, capture_output=True, text=True, check=True)
        again_s = time.perf_counter() - begin
    work_s, apart_s = sum(different.values()), sum(trial["seconds"] for trial in trials)
    inside = re.search(r"([\d.]+) times that", said)
    save(
        "sweep_share",
        {
            "words": WORDS,
            "trials": len(trials),
            "stages_asked": sum(len(trial["stages"]) for trial in trials),
            "stages_different": len(different),
            "wall_s": round(wall_s, 1),
            "work_s": round(work_s, 1),
            "apart_s": round(apart_s, 1),
            "ratio": round(wall_s / work_s, 3),
            "ratio_of_the_trials": float(inside.group(1)) if inside else None,
            "again_s": round(again_s, 1),
        },
    )
    times = f"{wall_s / work_s:.3f} times"
    print(f"{wall_s:.0f} s for {work_s:.0f} s of different work: {times}; {apart_s:.0f} s apart; again: {again_s:.0f} s")


if __name__ == "__main__":
    main()
