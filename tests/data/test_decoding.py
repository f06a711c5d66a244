"""One way of decoding for a corpus: wherever its pictures are used, and in the models that are trained on it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_ray.artifacts import Checkpoint, Corpus
from ssl_ray.config import override
from ssl_ray.data.labeler import Clock, LabelerSettings, decoded_batches
from ssl_ray.data.loader import Stream, StreamConfig, labeled_entries
from ssl_ray.data.predict import _warn_of_ground
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.label_files import LabelFile
from ssl_ray.models import load_model
from ssl_ray.report.html import _thumbnail
from ssl_ray.scale import inline
from ssl_ray.settings.training import TrainConfig
from ssl_ray.settings.views import Preprocess
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.train import train
from ssl_ray.train.neighbours import _draw
from ssl_ray.views.channels import Decoding
from tests.pictures import encoded
from tests.teachers import make_model

GROUND = (0, 9, 99)
CLEAR = encoded(Image.new("RGBA", (16, 16), (200, 0, 0, 0)))
PREPROCESS = Preprocess(size=16)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(str(tmp_path_factory.mktemp("root")), inline(), echo=lambda line: None)


@pytest.fixture(scope="module")
def images(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Pictures of which nothing is to be seen but the ground."""
    folder = tmp_path_factory.mktemp("labeled")
    for index in range(12):
        (folder / "ab"[index % 2]).mkdir(exist_ok=True)
        (folder / "ab"[index % 2] / f"{index}.png").write_bytes(CLEAR)
    config = ImagesConfig(
        labeled=str(folder), test_images=2, val_images=2, needs_unlabeled=False, background=GROUND, leaks="ignore"
    )
    found: Corpus = run("images", ingest, config)
    return found


def stream(images: Corpus, crops: tuple[float, int] | None) -> np.ndarray:
    with ThreadPoolExecutor(1) as pool:
        config = StreamConfig("labeled", labeled_entries(images), ("train",), 4, crops=crops)
        made = Stream(config, images, PREPROCESS, seed=0, lanes=1, rank=0, workers=1, cache_mb=1, pool=pool)
        return made.batch(0)[0]


def labeled(images: Corpus) -> np.ndarray:
    shard = images.shards("test")[0]
    settings = LabelerSettings(images.path, "", "", batch=4, threads=1, device="cpu")
    with ThreadPoolExecutor(1) as pool:
        file = LabelFile(shard.shard, 0, shard.num_rows)
        return next(decoded_batches(settings, file, 4, PREPROCESS, pool, Clock())).pixels


def validation(images: Corpus) -> np.ndarray:
    with ThreadPoolExecutor(1) as pool:
        return _draw(images, "val", 2, override(TrainConfig(), {"preprocess.size": 16}), pool)[0]


@pytest.mark.parametrize(
    "use",
    [lambda images: stream(images, None), lambda images: stream(images, (0.5, 1)), labeled, validation],
    ids=["training", "training with crops", "labeling", "neighbors"],
)
def test_shows_the_ground_of_the_corpus(images: Corpus, use: Callable[[Corpus], np.ndarray]) -> None:
    assert (use(images) == GROUND).all()


def test_a_report_shows_the_ground() -> None:
    import base64
    import io

    shown = Image.open(io.BytesIO(base64.b64decode(_thumbnail(CLEAR, Decoding(background=GROUND)))))
    assert shown.convert("RGB").getpixel((5, 5)) == GROUND


def test_a_model_remembers_what_it_was_trained_on(run: Run, images: Corpus) -> None:
    small = override(TrainConfig(), {"net.width": 8, "schedule.length": 1, "batch": 4, "preprocess.size": 16})
    model: Checkpoint = run("teacher", train, small, images=images)
    assert load_model(model.path).decoding == Decoding(background=GROUND)


def test_a_model_of_another_ground_is_noticed(images: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "model", images.classes)
    model.folder.write_json("model.json", model.model | {"decoding": {"background": [1, 2, 3], "range": None}})
    _warn_of_ground(images, model)
    assert "set images.background=[1, 2, 3]" in capsys.readouterr().out
