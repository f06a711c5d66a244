"""Small models to label with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ssl_ray.artifacts import Checkpoint, Corpus, Record
from ssl_ray.config import override
from ssl_ray.data.labeler import Labeler, LabelerSettings
from ssl_ray.methods.self_training import SelfTraining
from ssl_ray.settings.training import TrainConfig
from ssl_ray.storage import Folder
from ssl_ray.train.loop import Loop
from ssl_ray.train.run import write_model


def make_model(folder: str | Path, classes: list[str], seed: int = 0, **settings: Any) -> Checkpoint:
    config = override(TrainConfig(), {"net.width": 8, "seed": seed, "preprocess.size": 28, **settings})
    loop = Loop(SelfTraining(config, len(classes)), None, steps=1, steps_per_epoch=1.0, device=torch.device("cpu"))
    write_model(Folder(str(folder)), loop.method.describe() | {"classes": classes}, loop)
    Record("Checkpoint", "train", "teacher", f"fake-{seed}", {}, {}, {}).save(Folder(str(folder)))
    return Checkpoint(str(folder))


def a_labeler(images: Corpus, model: Checkpoint, out: Folder, **settings: Any) -> Labeler:
    chosen: dict[str, Any] = {"batch": 64, "threads": 1, "device": "cpu", "precision": "float32", **settings}
    return Labeler(LabelerSettings(images=images.path, model=model.path, out=out.path, **chosen))
