"""A cluster that goes away under a job."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssl_ray.cluster import ENVIRONMENT
from tests.cluster.test_autoscaling import free_port
from tests.faults.harness import write_corpus, write_teacher

ROOT = Path(__file__).parents[2]


def pids(place: Path, title: str = "") -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            line = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(place) in line and title in line and int(entry) != os.getpid():
                found.append(int(entry))
    return found


@pytest.fixture
def head() -> Iterator[tuple[str, Path]]:
    """Address and folder of a Ray of one node."""
    place = Path(tempfile.mkdtemp(prefix="lc-", dir="/tmp"))
    port = free_port()
    environment = os.environ | ENVIRONMENT | {"RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", f"--port={port}", "--num-cpus=4", "--disable-usage-stats",
               "--node-ip-address=127.0.0.1", f"--temp-dir={place}/ray", "--object-store-memory=150000000",
               f"--dashboard-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}",
               f"--ray-client-server-port={20000 + port % 9000}"]  # fmt: skip
    try:
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120, check=True)
        yield f"127.0.0.1:{port}", place
    finally:
        for pid in pids(place):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.slow
def test_a_cluster_that_goes_away_ends_the_job_with_one_line(head: tuple[str, Path], tmp_path: Path) -> None:
    address, place = head
    images, teacher = write_corpus(tmp_path / "images", 5000), write_teacher(tmp_path / "teacher")
    environment = os.environ | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT),
                                "SSL_RAY_SILENCE_S": "6"}  # fmt: skip
    settings = ["labeler.quarantine_budget=0.05", "scale.label_rows_per_file=50"]
    command = [sys.executable, "jobs/label.py", "--teacher", teacher, "--images", images, "--root", str(tmp_path / "root"),
               *(word for text in settings for word in ("--set", text))]  # fmt: skip
    with (
        open(tmp_path / "said", "w") as said,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said) as job,
    ):
        until = time.monotonic() + 120
        while not list((tmp_path / "root/labels/labels").glob("[0-9]*.parquet")):
            assert job.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        for pid in pids(place, "gcs_server"):
            os.kill(pid, signal.SIGKILL)
        code = job.wait(timeout=90)
    text = (tmp_path / "said").read_text()
    assert code == 1
    assert "error: the Ray cluster at " in text
    assert "went away: its head has not answered for 6 s" in text
    # Inline, without any cluster, the same root goes on.
    done = subprocess.run(
        [*command, "--scale", "inline"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "goes on with what is saved" in done.stdout
