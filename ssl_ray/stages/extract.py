"""What a frozen backbone sees in images: one vector each, computed once and shared by all probes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ssl_ray.artifacts import Checkpoint, Corpus, Features
from ssl_ray.config import Config
from ssl_ray.data.labeler import Precision
from ssl_ray.data.predict import predict
from ssl_ray.errors import SourceError
from ssl_ray.label_files import list_label_files
from ssl_ray.scale import Scale
from ssl_ray.settings.nets import LayerConfig
from ssl_ray.stage import stage
from ssl_ray.storage import Folder


class ExtractConfig(Config):
    splits: tuple[str, ...] = ("train", "val", "test")  # those that the corpus has
    precision: Precision = "auto"
    layer: LayerConfig | None = None  # None: what the backbone gives, pooled
    quarantine_budget: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of images that may be unreadable


@stage(Features, resumable=True)
def extract(config: ExtractConfig, out: Folder, scale: Scale, *, images: Corpus, model: Checkpoint) -> dict[str, Any]:
    """Features of whole splits, by the engine that labels: exactly once, restarted at will.

    Raises:
        SourceError: none of the splits has images, or more images than the budget allows are unreadable.
        ConfigError: the net has no layer of that name.
    """
    splits = [split for split in config.splits if images.num_images(split)]
    if not splits:
        raise SourceError(f"the corpus has no images in its splits {', '.join(config.splits)}")
    layer = None if config.layer is None else config.layer.model_dump(mode="json")
    found = predict(
        out,
        scale,
        images=images,
        model=model,
        splits=splits,
        budget=config.quarantine_budget,
        advice=", or allow more (quarantine_budget; in ssl-ray knowledge-transfer, labeler.quarantine_budget)",
        precision=config.precision,
        leaks="unlabeled" in splits,
        output="features",
        layer=layer,
    )
    folder = out / "features"
    width = folder.read_table(list_label_files(folder)[0].name, ["features"]).schema.field("features").type.list_size
    what = "" if config.layer is None or config.layer.name is None else f" of {config.layer.name}"
    return {
        "summary": f"{width:,} features{what} of {found['images']:,} images, {found['images_per_s']:,.0f} images/s",
        "width": width,
        **found,
    }
