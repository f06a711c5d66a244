"""Trainings that lose a node, are warned of it, and hosts that share nothing but S3."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_ray.errors import ResourceError
from ssl_ray.scale import Scale
from ssl_ray.settings.training import LoopConfig
from tests.faults.datacentre import spaces
from tests.faults.lose_a_trainer import SAVED_EVERY, STEPS

ROOT = Path(__file__).parents[2]


def test_any_number_of_workers_up_to_the_lanes_is_allowed() -> None:
    for workers in range(1, 9):
        LoopConfig(batch=64, lanes=8).check_workers(workers)
    LoopConfig(batch=64, lanes=4, batch_norm=16).check_workers(4)
    with pytest.raises(ResourceError, match="take 4 workers, or batch_norm=sync"):  # norms keep their images
        LoopConfig(batch=64, lanes=4, batch_norm=16).check_workers(3)
    with pytest.raises(ValueError, match="train_workers_min"):
        Scale(train_workers=2, train_workers_min=3)


def lose(mode: str, root: Path) -> tuple[str, dict[str, float]]:
    command = [sys.executable, "-m", "tests.faults.lose_a_trainer", mode, str(root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr, json.loads((root / "student/_record.json").read_text())["results"]


def history(root: Path) -> list[int]:
    return [int(json.loads(line)["step"]) for line in (root / "student/history.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_lost_node_costs_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    said, results = lose("kill", tmp_path)
    lost = int(re.search(r"LOST after step (\d+)", said).group(1))  # type: ignore[union-attr]
    assert lost <= results["first_step"] <= lost + SAVED_EVERY["kill"]
    assert results["steps"] == STEPS["kill"]
    assert history(tmp_path) == sorted(set(history(tmp_path)))  # no step twice
    # What came back is the optimiser, the average and the place in the data: the loss is that of an undisturbed run.
    assert abs(results["last"]["loss"] - undisturbed(tmp_path / "alone")) < 0.02


def undisturbed(root: Path) -> float:
    """The last loss of the same training in one process."""
    from ssl_ray.data.sources import ImagesConfig
    from ssl_ray.scale import inline
    from ssl_ray.stage import Run
    from ssl_ray.stages.ingest import ingest
    from ssl_ray.stages.train import train
    from tests.faults.lose_a_trainer import config

    run = Run(str(root), inline(), echo=lambda line: None)
    images = run("images", ingest, ImagesConfig(labels=100, test_images=200))
    return float(run("student", train, config(), images=images).results["last"]["loss"])


@pytest.mark.slow
def test_a_notice_saves_at_once(tmp_path: Path) -> None:
    said, results = lose("drain", tmp_path)
    found = re.search(r"SAVED step (\d+), ([\d.]+) s after the notice", said)
    assert found is not None, said[-3000:]
    assert int(found.group(1)) % SAVED_EVERY["drain"] != 0
    assert float(found.group(2)) < 30
    again = re.search(r"AGAIN step (\d+)", said)
    assert again is not None, said[-3000:]
    assert results["first_step"] >= int(again.group(1)) > int(found.group(1))


@pytest.mark.skipif(spaces() is None, reason="this user may not make network namespaces, or iproute2 is missing")
@pytest.mark.slow
def test_hosts_that_share_nothing_but_s3() -> None:
    command = [sys.executable, "-m", "tests.faults.several_hosts"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=590, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert "labels, none twice" in done.stdout
    assert "with 1 worker" in done.stdout
