"""What a frozen backbone sees in images: one vector each, computed once and shared by all probes."""

from __future__ import annotations

from typing import Any

from ssl_ray.artifacts import Checkpoint, Corpus, Features
from ssl_ray.config import Config
from ssl_ray.data.labeler import Precision
from ssl_ray.data.predict import predict
from ssl_ray.scale import Scale
from ssl_ray.stage import stage
from ssl_ray.storage import Folder


class ExtractConfig(Config):
    splits: tuple[str, ...] = ("train", "val", "test")  # those that the corpus has
    precision: Precision = "auto"


@stage(Features, resumable=True)
def extract(config: ExtractConfig, out: Folder, scale: Scale, *, images: Corpus, model: Checkpoint) -> dict[str, Any]:
    """Features of whole splits, by the engine that labels: exactly once, restarted at will. No image may be lost."""
    splits = [split for split in config.splits if images.num_images(split)]
    found = predict(
        out, scale, images=images, model=model, splits=splits, budget=0.0, precision=config.precision, output="features"
    )
    return {"summary": f"features of {found['images']:,} images, {found['images_per_s']:,.0f} images/s", **found}
