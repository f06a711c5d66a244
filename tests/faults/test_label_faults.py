"""What a labelling job survives. After each fault the same command is run again, and the labels must be those of a run
without trouble. `SSL_RAY_FAULTS=20` asks for as many random moments as the table in docs/labelling.md.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults.harness import BAD, REPO, Job, assert_same, kill_group, labels, pids, write_corpus, write_teacher

MOMENTS = int(os.environ.get("SSL_RAY_FAULTS", "1"))
COUNT = 5000


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("faults")
    return write_corpus(folder / "images", COUNT), write_teacher(folder / "teacher")


@pytest.fixture(scope="module")
def calm(sources: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """A run without trouble, and how long it took."""
    job = Job(tmp_path_factory.mktemp("calm") / "root", *sources)
    begin = time.monotonic()
    done = job.run()
    assert done.returncode == 0, done.stderr
    found = labels(job.root)
    assert len(found["ids"]) == COUNT - BAD
    assert len(found["quarantine"]) == BAD
    return found, time.monotonic() - begin


def finish(job: Job, calm: tuple[dict[str, Any], float]) -> subprocess.CompletedProcess[str]:
    done = job.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(labels(job.root), calm[0])
    return done


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_driver_killed_at_a_random_moment(
    moment: int, sources: tuple[str, str], calm: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    job = Job(tmp_path / "root", *sources)
    process = job.start()
    # From the first label on: how many files stand when it is killed is drawn; in one of five cases none does yet.
    draw = np.random.default_rng(moment)
    job.wait_for_files(int(draw.integers(0, 48)) if moment % 5 else 0, process)
    time.sleep(float(draw.uniform(0, 0.3)) + (0 if moment % 5 else float(draw.uniform(0, 4))))
    assert process.poll() is None, "it was at work"
    kill_group(process)
    finish(job, calm)


@pytest.mark.slow
def test_killed_again_and_again_and_cut_otherwise_each_time(
    sources: tuple[str, str], calm: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    for count, rows in ((3, 70), (9, 130), (14, 90)):
        job = Job(tmp_path / "root", *sources, settings=(f"scale.label_rows_per_file={rows}",))
        process = job.start()
        job.wait_for_files(count, process)
        assert process.poll() is None, "it was at work"
        kill_group(process)
    kept = {path.name for path in job.label_files}
    finish(job, calm)
    assert kept <= {path.name for path in job.label_files}, "what was finished stays, however it was cut"


def test_a_restart_does_not_read_finished_input_again(
    sources: tuple[str, str], calm: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    job = Job(tmp_path / "root", *sources)
    process = job.start()
    job.wait_for_files(20, process)
    kill_group(process)
    before = {path.name: path.stat().st_mtime_ns for path in job.label_files}
    finish(job, calm)
    after = {path.name: path.stat().st_mtime_ns for path in job.label_files}
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_terminated(sources: tuple[str, str], calm: tuple[dict[str, Any], float], tmp_path: Path) -> None:
    """SIGTERM, as a scheduler sends it: the job ends soon, says what to do, and goes on later."""
    job = Job(tmp_path / "root", *sources)
    process = job.start()
    job.wait_for_files(5, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on with what is saved" in err
    assert "Traceback" not in err
    finish(job, calm)


def test_two_drivers_on_one_root(sources: tuple[str, str], calm: tuple[dict[str, Any], float], tmp_path: Path) -> None:
    job = Job(tmp_path / "root", *sources)
    first = job.start()
    job.wait_for_files(2, first)
    second = job.run()
    assert second.returncode == 2
    assert f"another job is at work on {job.root} (process {first.pid} " in second.stderr
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0, out + err
    assert_same(labels(job.root), calm[0])


@pytest.mark.slow
def test_a_full_disk(sources: tuple[str, str], calm: tuple[dict[str, Any], float], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        job = Job(disk / "root", *sources)
        done = job.run()
        assert done.returncode == 2, done.stdout + done.stderr
        assert "the disk is full" in done.stderr
        assert "Traceback" not in done.stderr
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        finish(job, calm)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


@pytest.mark.slow
class TestOnRay:
    """The same with actors and tasks in processes of their own."""

    def job(self, tmp_path: Path, sources: tuple[str, str], *settings: str) -> Job:
        return Job(tmp_path / "root", *sources, settings=("scale.label_threads=1", *settings), scale="local")

    def test_teacher_actor_killed(self, sources: tuple[str, str], calm: tuple[dict[str, Any], float], tmp_path: Path) -> None:
        job = self.job(tmp_path, sources)
        process = job.start()
        job.wait_for_files(5, process)
        actors = pids("MapWorker", process.pid)
        assert actors, "an actor is at work"
        for pid in actors:
            os.kill(pid, signal.SIGKILL)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, out + err
        assert_same(labels(job.root), calm[0])

    def test_decoding_worker_killed(self, sources: tuple[str, str], calm: tuple[dict[str, Any], float], tmp_path: Path) -> None:
        job = self.job(tmp_path, sources, "scale.decode=split")
        process = job.start()
        killed = 0
        begin = time.monotonic()
        while process.poll() is None and killed < 2 and time.monotonic() - begin < 120:
            for pid in pids("ray::MapBatches(decode_ranges)", process.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        out, err = process.communicate(timeout=240)
        assert killed, "a task was at work"
        assert process.returncode == 0, out + err
        assert_same(labels(job.root), calm[0])

    def test_driver_killed(self, sources: tuple[str, str], calm: tuple[dict[str, Any], float], tmp_path: Path) -> None:
        job = self.job(tmp_path, sources)
        process = job.start()
        job.wait_for_files(8, process)
        assert process.poll() is None, "it was at work"
        kill_group(process)
        kept = {path.name for path in job.label_files}
        finish(job, calm)
        assert kept <= {path.name for path in job.label_files}, "what was finished stays"

    def test_a_node_is_lost(self, sources: tuple[str, str], calm: tuple[dict[str, Any], float], tmp_path: Path) -> None:
        """Two nodes with an actor each; one goes away, its actor comes back on the other."""
        program = [sys.executable, "-m", "tests.faults.lose_a_node", *sources, str(tmp_path / "root")]
        environment = os.environ | {"PYTHONPATH": str(REPO)}
        done = subprocess.run(program, cwd=REPO, env=environment, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "a node was lost" in done.stdout
        assert_same(labels(tmp_path / "root"), calm[0])
