"""One Ray for the session, small real images, and no network."""

from __future__ import annotations

import datetime
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_ray.artifacts import Corpus
from ssl_ray.cluster import ensure_ray
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.scale import Scale, local
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest
from tests.s3 import client_of, environment, s3_server

os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "60"

BEGAN = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow-minutes", type=float, help="begin no test marked slow after so many minutes; say which were left out"
    )


LONGEST = (
    "faults/test_label_faults", "jobs/test_sweep", "data/test_predict", "data/test_kmeans", "jobs/test_label", "train/test_fit",
    "methods/test_scenes", "jobs/test_self_training", "jobs/test_noisy_student", "methods/test_moco",
    "jobs/test_hpt", "jobs/test_knowledge_transfer", "test_damage", "jobs/test_simclrv2", "planning/test_planning",
    "methods/test_simclr", "train/test_interrupt", "methods/test_jigsaw", "test_s3", "data/test_materialize", "data/test_leaks",
)  # fmt: skip
"""Modules that begin first, so that no process is left with a long one at the end (`pytest --durations=0` measures them)."""


ON_RAY = ("tests/faults/", "tests/train/test_interrupt.py")
"""Tests that start Rays of their own, beside those that use the session's."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Name the tests that stay in one process: those on Ray share one Ray, those on S3 its server, a module its fixtures."""
    fixtures = getattr(item, "fixturenames", ())
    module = item.nodeid.split("::")[0]
    name = "ray" if "ray_session" in fixtures or module.startswith(ON_RAY) else "s3" if "s3_endpoint" in fixtures else module
    item.add_marker(pytest.mark.xdist_group(name))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put long modules first. Where time is short, another test comes first every day, so that none is always left out."""
    rank = {f"tests/{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.split("::")[0], len(rank)))
    if config.getoption("--slow-minutes") is not None and items:
        first = datetime.date.today().toordinal() * 7 % len(items)
        items[:] = items[first:] + items[:first]


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("--slow-minutes")
    if minutes is not None and item.get_closest_marker("slow") and time.monotonic() - BEGAN > 60 * minutes:
        pytest.skip(f"the {minutes:g} minutes for slow tests are over")


@pytest.fixture(scope="session")
def scale() -> Scale:
    return local()


@pytest.fixture(scope="session")
def ray_session(scale: Scale) -> Iterator[None]:
    import ray

    ensure_ray(scale)
    yield
    ray.shutdown()


@pytest.fixture
def quiet_run(tmp_path: Path, scale: Scale) -> Run:
    return Run(str(tmp_path / "root"), scale, echo=lambda line: None)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, scale: Scale) -> Corpus:
    """sample:mnist5k: 100 labels, 200 test, 200 validation, 4,500 unlabeled images in three shards."""
    run = Run(str(tmp_path_factory.mktemp("digits")), scale, echo=lambda line: None)
    return run("images", ingest, ImagesConfig(labels=100, test_images=200, val_images=200))


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Image folders of flat colours: `make_folder("train", {"cat": 5, "dog": 5})`; class "" puts images loose."""

    def make(name: str, counts: dict[str, int], size: tuple[int, int] = (20, 16)) -> Path:
        base = tmp_path / name
        base.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(abs(hash(name)) % 1000)
        for number, (label, count) in enumerate(counts.items()):
            folder = base / label if label else base
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = draw.integers(0, 60, (size[1], size[0], 3)) + np.array([60 * (number % 3), 30, 120])
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
        return base

    return make


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server; its variables are set for as long as the session lasts, before Ray starts its processes."""
    with s3_server(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client, with the usual variables set for this process."""
    for name, value in environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    return client_of(s3_endpoint)


@pytest.fixture
def bucket(s3: Any) -> str:
    """A fresh bucket."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name
