"""How good a model is on images that it never saw."""

from __future__ import annotations

from typing import Any

import numpy as np

from ssl_ray.artifacts import Checkpoint, Corpus, Scores, list_label_files
from ssl_ray.config import Config
from ssl_ray.data.predict import predict
from ssl_ray.scale import Scale
from ssl_ray.stage import stage
from ssl_ray.storage import Folder
from ssl_ray.tasks.classification import metrics, probs_of


class EvaluateConfig(Config):
    model: str  # the name in the score table
    seed: int = 0
    splits: tuple[str, ...] = ("val", "test")  # those that the corpus has


@stage(Scores, resumable=True)
def evaluate(config: EvaluateConfig, out: Folder, scale: Scale, *, images: Corpus, model: Checkpoint) -> dict[str, Any]:
    """Predictions for whole splits, and their metrics. No test image may be lost: the quarantine budget is zero."""
    splits = [split for split in config.splits if images.num_images(split)]
    result = predict(out, scale, images=images, model=model, splits=splits, budget=0.0, precision="float32")
    scores, num_classes = [], len(images.classes)
    for split in splits:
        held = {shard.shard for shard in images.shards(split)}
        files = [file for file in list_label_files(out / "labels") if file.shard in held]
        tables = [(out / "labels").read_table(file.name, ["probs"]) for file in files]
        probs = np.concatenate([probs_of(table, num_classes) for table in tables])
        for metric, value in metrics(images.column(split, "label"), probs).items():
            row = {
                "model": config.model,
                "seed": config.seed,
                "split": split,
                "metric": metric,
                "value": value,
                "n": len(probs),
            }
            scores.append(row)
    top1 = "; ".join(f"{row['split']} top-1 {row['value']:.2%} (n={row['n']:,})" for row in scores if row["metric"] == "top1")
    return {"summary": top1, "scores": scores, **result}
