"""A descriptor that nobody trains, as a checkpoint, so that features, clusters and labels come from it as from any net."""

from __future__ import annotations

from typing import Any

from ssl_ray.artifacts import Checkpoint
from ssl_ray.config import Config
from ssl_ray.scale import Scale
from ssl_ray.settings.nets import HOGConfig
from ssl_ray.settings.views import Preprocess
from ssl_ray.stage import stage
from ssl_ray.storage import Folder


class DescribeConfig(Config):
    hog: HOGConfig = HOGConfig()
    preprocess: Preprocess = Preprocess()


@stage(Checkpoint)
def describe(config: DescribeConfig, out: Folder, scale: Scale) -> dict[str, Any]:
    """Raises ConfigError if scikit-image is missing."""
    from ssl_ray.nets.hog import HOG

    HOG(config.hog)
    description = {
        "hog": config.hog.model_dump(mode="json"),
        "preprocess": config.preprocess.model_dump(mode="json"),
        "num_classes": 0,
        "classes": [],
    }
    out.write_json("model.json", description)
    return {"summary": f"HOG, {config.hog.orientations} orientations, cells of {config.hog.cell} pixels", "parameters": 0}
