"""From `ray job submit` to the first step of a training, on a cluster that is up: python -m benchmarks.submit_time"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import save
from ssl_ray.cluster import ENVIRONMENT

MARKS = {"submitted": "submitted successfully", "first_stage": "> images", "training": "> teacher",
         "first_step": r"\bstep \d+/\d+"}  # fmt: skip
ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def submit(address: str, root: str, environment: dict[str, str]) -> dict[str, float]:
    """Seconds from submitting to what the job prints."""
    name = f"job-{Path(root).name}"
    command = [str(BIN / "ray"), "job", "submit", "--address", address, "--submission-id", name,
               "--runtime-env", "job_env.yaml",
               "--", sys.executable, "jobs/noisy_student.py", "tiny", "--root", root]  # fmt: skip
    begin, seen = time.perf_counter(), dict[str, float]()
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        assert job.stdout is not None
        for line in job.stdout:
            now = time.perf_counter() - begin
            for mark, pattern in MARKS.items():
                if mark not in seen and re.search(pattern, line):
                    seen[mark] = round(now, 1)
            if "first_step" in seen:
                break
        subprocess.run(
            [str(BIN / "ray"), "job", "stop", "--address", address, name], env=environment, check=False, capture_output=True
        )
        job.kill()
    return seen


def main() -> None:
    environment = os.environ | ENVIRONMENT | {"RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="st-") as place:
        ports = [
            "--port=6411",
            "--dashboard-port=8311",
            "--ray-client-server-port=20311",
            "--dashboard-agent-listen-port=52411",
        ]
        start = [str(BIN / "ray"), "start", "--head", *ports, "--num-cpus=4", f"--temp-dir={place}/r", "--disable-usage-stats"]
        start.append("--object-store-memory=300000000")
        subprocess.run(start, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for number in range(3):  # the first one warms the cluster
                runs.append(submit("http://127.0.0.1:8311", f"{place}/{number}", environment))
                print(runs[-1], flush=True)
        finally:
            subprocess.run(["pkill", "-9", "-f", f"{place}/r"], check=False)
    save("submit_time", {"runs": runs})


if __name__ == "__main__":
    main()
