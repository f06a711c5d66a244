"""What a model says about unlabeled images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ssl_ray.artifacts import Checkpoint, Corpus, PseudoLabels
from ssl_ray.config import Config
from ssl_ray.data.predict import predict
from ssl_ray.scale import Scale
from ssl_ray.stage import stage
from ssl_ray.storage import Folder


class LabelConfig(Config):
    split: Literal["unlabeled", "train"] = "unlabeled"
    quarantine_budget: Annotated[float, Field(ge=0, le=1)] = 0.01  # share of images that may be unreadable


@stage(PseudoLabels, resumable=True)
def label(config: LabelConfig, out: Folder, scale: Scale, *, images: Corpus, model: Checkpoint) -> dict[str, Any]:
    """Soft labels for every image of the split, stored once; thresholds and temperature are later decisions.

    The fingerprint of the model is part of this stage's own, so a changed teacher never adds to the old one's rows.
    """
    advice = ", or allow more with --set labeler.quarantine_budget=0.05"
    result = predict(
        out, scale, images=images, model=model, splits=[config.split], budget=config.quarantine_budget, advice=advice
    )
    confidence = np.concatenate(
        [
            (out / "labels").read_table(name, ["confidence"])["confidence"].to_numpy()
            for name in (out / "labels").names(".parquet")
        ]
    )
    quarantined = f", {result['quarantined']} in quarantine" if result["quarantined"] else ""
    return {
        "summary": (
            f"{result['images']:,} images labeled, mean confidence {confidence.mean():.3f}{quarantined}, "
            f"{result['images_per_s']:,.0f} images/s"
        ),
        "classes": images.classes,
        "mean_confidence": float(confidence.mean()),
        **result,
    }
