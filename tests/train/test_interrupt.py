"""Trainings that wait for workers, or are interrupted."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.util import placement_group_table

from ssl_ray.artifacts import Corpus
from ssl_ray.cluster import ensure_ray, stays_one_node
from ssl_ray.config import override
from ssl_ray.errors import ResourceError
from ssl_ray.scale import Scale
from ssl_ray.settings.training import TrainConfig
from ssl_ray.storage import Folder
from ssl_ray.train.fit import fit

CONFIG = override(
    TrainConfig(),
    {"net.width": 8, "schedule.unit": "steps", "schedule.length": 2, "batch": 16, "lanes": 2, "preprocess.size": 28},
)


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """A shell's background job ignores Ctrl-C, and so would these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def places() -> list[str]:
    return [place["state"] for place in placement_group_table().values() if place["state"] != "REMOVED"]


def controllers() -> list[str]:
    from ray.util.state import list_actors

    found = list_actors(ray.get_runtime_context().gcs_address, filters=[("state", "=", "ALIVE")], limit=1000)
    return [actor.actor_id for actor in found if actor.class_name == "TrainController"]


def interrupted(after: Callable[[], bool]) -> threading.Thread:
    """Ctrl-C, as soon as something is so."""

    def press() -> None:
        until = time.monotonic() + 60
        while not after() and time.monotonic() < until:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


@pytest.fixture
def own_session(scale: Scale) -> Iterator[None]:
    """The session's Ray, once more for the tests that follow: an interrupt ends the connection."""
    yield
    ensure_ray(scale)


@pytest.mark.parametrize("elastic", [False, True])
def test_a_wait_for_workers_can_be_interrupted(
    elastic: bool, ray_session: None, own_session: None, digits: Corpus, tmp_path: Path, scale: Scale
) -> None:
    changes = {"train_workers": 2, "train_workers_min": int(elastic), "train_cpus": 99.0, "autoscaling": True}
    presses = interrupted(lambda: bool(controllers() if elastic else places()))
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fit("self-training", CONFIG, Folder(str(tmp_path / "a")), override(scale, changes), images=digits)
    presses.join()
    assert time.monotonic() - begin < 40  # and not the minute of `start_timeout_s`, three times
    assert not ray.is_initialized()  # what ran there for this process ends


@pytest.mark.slow
def test_after_an_interrupt_there_is_room_again(
    ray_session: None, own_session: None, digits: Corpus, tmp_path: Path, scale: Scale
) -> None:
    long = override(CONFIG, {"schedule.length": 100_000})
    out = tmp_path / "a"
    presses = interrupted(lambda: any(out.glob("training/step-*")))
    with pytest.raises(KeyboardInterrupt):
        fit("self-training", long, Folder(str(out)), override(scale, {"checkpoint_steps": 20}), images=digits)
    presses.join()
    fit("self-training", CONFIG, Folder(str(tmp_path / "b")), scale, images=digits)
    assert (tmp_path / "b/model.safetensors").exists()


@pytest.mark.slow
def test_a_training_runs_in_a_notebook(ray_session: None, digits: Corpus, tmp_path: Path, scale: Scale) -> None:
    """Where an event loop runs already."""

    async def cell() -> None:
        fit("self-training", CONFIG, Folder(str(tmp_path / "a")), scale, images=digits)

    asyncio.run(cell())
    assert (tmp_path / "a/model.safetensors").exists()


def test_workers_that_do_not_come_up_are_one_line(
    ray_session: None, digits: Corpus, tmp_path: Path, scale: Scale, capfd: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    hungry = override(scale, {"train_cpus": 99.0, "autoscaling": True, "start_timeout_s": 1})
    with pytest.raises(ResourceError, match="did not come up within 1 s, three times"):
        fit("self-training", CONFIG, Folder(str(tmp_path / "a")), hungry, images=digits)
    # The process of Ray that watches over places may complain when the controller is gone.
    said = [line for line in capfd.readouterr().err.splitlines() if "PlacementGroupCleaner" not in line]
    assert not [line for line in said if "Traceback" in line]
    assert places() == []


def test_a_head_that_stays_alone_has_nobody_to_notify(ray_session: None, scale: Scale) -> None:
    assert stays_one_node(scale)
    assert not stays_one_node(override(scale, {"autoscaling": True}))
    assert not stays_one_node(override(scale, {"train_workers": 2, "train_workers_min": 1}))
