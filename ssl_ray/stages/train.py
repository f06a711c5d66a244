"""A model from labels, or from labels and pseudo-labels."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from ssl_ray.artifacts import Checkpoint, Corpus, PseudoLabels, Selection
from ssl_ray.data.loader import labeled_entries
from ssl_ray.errors import ConfigError
from ssl_ray.methods.self_training import TrainConfig
from ssl_ray.nets import NetConfig
from ssl_ray.scale import Scale
from ssl_ray.stage import stage
from ssl_ray.storage import Folder
from ssl_ray.subset import SubsetConfig
from ssl_ray.train.fit import fit

SHAPE = ("name", "width", "blocks", "stem_stride", "multiplier", "selective_kernels", "small_image")
"""The settings of a net that decide which weights fit it."""


@stage(Checkpoint, resumable=True)
def train(
    config: TrainConfig,
    out: Folder,
    scale: Scale,
    *,
    images: Corpus,
    labels: PseudoLabels | None = None,
    selection: Selection | None = None,
    start: Checkpoint | None = None,
    teacher: Checkpoint | None = None,
) -> dict[str, Any]:
    """Train on Ray Train; killed at any moment, it goes on from its last checkpoint.

    Args:
        labels, selection: pseudo-labels and which of them to use, for `mix` "joint" and "pseudo".
        start: weights to begin with (warm start, fine-tuning); the net must be the same. Of a pretrained encoder the
            backbone is taken, and as many layers of its head as `net.projection` says.
        teacher: labels while the student learns, for `pseudo.teacher=live`.

    Raises:
        ConfigError: `start` is a checkpoint of another net.
    """
    if start is not None:
        check_same_net(config.net, start)
    if config.subset is not None:
        write_subset(out, images, config.subset)
    result = fit(
        "self-training",
        config.model_dump(mode="json"),
        out,
        scale,
        images=images,
        labels=labels,
        selection=selection,
        start=start,
        teacher=teacher,
        images_per_step=config.images_per_step(),
    )
    last = result["last"]
    return {
        "labels": len(labeled_entries(images, config.subset)),
        "summary": (
            f"{result['steps']} steps, {result['parameters']:,} parameters, loss {last.get('loss', float('nan')):.3f}, "
            f"{result['images_per_s']:,.0f} images/s, waiting for data {last.get('data_wait', 0.0):.0%}"
        ),
        **result,
    }


def write_subset(out: Folder, images: Corpus, subset: SubsetConfig) -> None:
    """Which labels are used, by name: `labels.parquet`.

    Raises:
        SourceError: they cannot be drawn.
    """
    chosen = labeled_entries(images, subset)
    names = {shard.shard: images.rows(shard.shard, ["image_id"])["image_id"] for shard in images.shards("train")}
    ids = [names[int(shard)][int(row)].as_py() for shard, row in zip(chosen.shard, chosen.row, strict=True)]
    out.write_table("labels.parquet", pa.table({"image_id": ids, "label": chosen.label}))


def check_same_net(net: NetConfig, start: Checkpoint) -> None:
    """Raises ConfigError if a checkpoint to begin with was made with another net."""
    old, new = start.model["net"], net.model_dump(mode="json")
    changed = [f"net.{key}: {old.get(key)} -> {new[key]}" for key in SHAPE if old.get(key) != new[key]]
    if changed:
        raise ConfigError(
            f"the checkpoint to begin with, {start.path}, has another net ({'; '.join(changed)}); set the same one, or "
            "begin from scratch"
        )
