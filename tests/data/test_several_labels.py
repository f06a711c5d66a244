"""Several labels an image, from the boxes of COCO and VOC, as far as the score of a probe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_ray.data.sources import ImagesConfig
from ssl_ray.errors import SourceError
from ssl_ray.scale import inline
from ssl_ray.stage import Run
from ssl_ray.stages.extract import ExtractConfig, extract
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.probe import ProbeConfig, probe
from ssl_ray.train.streams import make_streams
from tests.teachers import make_model

NAMES = ["left", "right", "both sides grey"]


def write_coco(folder: Path, count: int, seed: int) -> str:
    """An image shows `left` and `right` as bright halves, each or both or none; the third class where none is."""
    draw = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        shown = draw.random(2) < 0.5
        pixels = draw.integers(0, 60, (28, 28, 3))
        pixels[:, :14] += 150 * shown[0]
        pixels[:, 14:] += 150 * shown[1]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"images/{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 28, "height": 28})
        classes = [c for c in range(2) if shown[c]] or [2]
        for c in classes * 2:  # two boxes of a class are one label
            annotations.append({"id": len(annotations), "image_id": number, "category_id": 10 + c, "bbox": [0, 0, 5, 5]})
    categories = [{"id": 10 + c, "name": name} for c, name in enumerate(NAMES)]
    (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return f"coco:{folder}/instances.json@{folder}/images/"


def settings(tmp_path: Path, **changes: object) -> ImagesConfig:
    train, test = write_coco(tmp_path / "train", 120, 0), write_coco(tmp_path / "test", 80, 1)
    return ImagesConfig(labeled=train, test=test, needs_unlabeled=False, **{"several_labels": True, **changes})


def test_probes_of_an_encoder_score_by_area(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "root"), inline(), echo=lambda line: None)
    images = run("images", ingest, settings(tmp_path))
    assert images.classes == sorted(NAMES)
    assert images.label_sets is not None
    assert {tuple(images.classes[c] for c in found) for found in images.label_sets} == {
        ("both sides grey",), ("left",), ("right",), ("left", "right"),
    }  # fmt: skip
    assert sum(images.results["per_class"].values()) > 120, "some images have two"
    features = run("features", extract, ExtractConfig(), images=images, model=make_model(tmp_path / "model", ["a", "b"]))
    config = ProbeConfig(seeds=1, counts=(60,), linear={"steps": 300})
    found = run("probe", probe, config, images=images, features=features)
    scores = {row["model"]: row for row in found.rows}
    assert {row["metric"] for row in found.rows} == {"auroc"}
    assert set(scores) == {"knn", "linear", "linear, 60 labels"}
    assert scores["linear"]["value"] > 0.9
    assert scores["linear"]["n"] == 80


def test_they_serve_no_training(tmp_path: Path) -> None:
    from ssl_ray.settings.training import TrainConfig

    run = Run(str(tmp_path / "root"), inline(), echo=lambda line: None)
    images = run("images", ingest, settings(tmp_path))
    with pytest.raises(SourceError, match="serve probes of an encoder, and no training"):
        make_streams(TrainConfig(), images, None, None, rank=0, workers=1, scale=inline())


def test_without_the_setting_boxes_are_no_classes(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "root"), inline(), echo=lambda line: None)
    with pytest.raises(SourceError, match=r"images\.several_labels=true"):
        run("images", ingest, settings(tmp_path, several_labels=False))
