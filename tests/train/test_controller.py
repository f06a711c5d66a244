"""Ray Train's controller in this process: what an interrupt leaves behind."""

from __future__ import annotations

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
from ssl_ray.config import override
from ssl_ray.errors import ResourceError
from ssl_ray.methods.self_training import TrainConfig
from ssl_ray.scale import Scale
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


@pytest.mark.parametrize("elastic", [False, True])
def test_a_wait_for_workers_can_be_interrupted(
    elastic: bool, ray_session: None, digits: Corpus, tmp_path: Path, scale: Scale
) -> None:
    changes = {"train_workers": 2, "train_workers_min": int(elastic), "train_cpus": 99.0, "autoscaling": True}
    presses = interrupted(lambda: bool(places()) or elastic)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fit("self-training", CONFIG, Folder(str(tmp_path / "a")), override(scale, changes), images=digits)
    presses.join()
    assert time.monotonic() - begin < 30  # and not the minute of `start_timeout_s`, three times
    assert places() == []


@pytest.mark.slow
def test_after_an_interrupt_there_is_room_again(ray_session: None, digits: Corpus, tmp_path: Path, scale: Scale) -> None:
    free = ray.available_resources()["CPU"]
    long = override(CONFIG, {"schedule.length": 100_000})
    out = tmp_path / "a"
    presses = interrupted(lambda: any(out.glob("training/step-*")))
    with pytest.raises(KeyboardInterrupt):
        fit("self-training", long, Folder(str(out)), override(scale, {"checkpoint_steps": 20}), images=digits)
    presses.join()
    assert places() == []
    until = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0) < free and time.monotonic() < until:
        time.sleep(0.2)
    fit("self-training", CONFIG, Folder(str(tmp_path / "b")), scale, images=digits)
    assert (tmp_path / "b/model.safetensors").exists()


def test_workers_that_do_not_come_up_are_one_line(
    ray_session: None, digits: Corpus, tmp_path: Path, scale: Scale, capfd: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    hungry = override(scale, {"train_cpus": 99.0, "autoscaling": True, "start_timeout_s": 1})
    with pytest.raises(ResourceError, match="did not come up within 1 s, three times"):
        fit("self-training", CONFIG, Folder(str(tmp_path / "a")), hungry, images=digits)
    assert "Traceback" not in capfd.readouterr().err
    assert places() == []
