"""A representation from images without labels."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from ssl_ray.artifacts import Checkpoint, Corpus
from ssl_ray.data.shards import decoding_of, read_encoded
from ssl_ray.errors import ConfigError, SourceError
from ssl_ray.scale import Scale
from ssl_ray.settings.pretraining import PRETEXT_METRICS, PRETRAINING, PretrainConfig
from ssl_ray.stage import stage
from ssl_ray.stages.train import check_same_net
from ssl_ray.storage import Folder
from ssl_ray.train.fit import fit
from ssl_ray.views.decode import open_rgb


@stage(Checkpoint, resumable=True)
def pretrain(
    config: PretrainConfig, out: Folder, scale: Scale, *, images: Corpus, start: Checkpoint | None = None
) -> dict[str, Any]:
    """Pretrain an encoder on the labeled and unlabeled images, without labels, on Ray Train; it goes on after a kill. The
    method is the one that the settings belong to.

    Where the corpus has labels and validation images, nearest neighbours are asked now and then (`knn_val` in the history);
    training never sees them.

    Args:
        start: a checkpoint whose backbone to begin with; its net must be the same.

    Raises:
        HealthError: the loss is not finite, or the representations have collapsed.
        ConfigError: `start` is a checkpoint of another net; the images are smaller than the crops.
        SourceError: there are no images to pretrain on.
    """
    if start is not None:
        check_same_net(config.net, start)
    check_images(images)
    warn_of_queue(config, images)
    if not config.enlarge:
        check_sizes(images, config.preprocess.size)
    if start is None and config.net.begins_elsewhere:
        from ssl_ray.nets.library import warn_of_view

        warn_of_view(config.net.name, config.preprocess)
    result = fit(
        config.method,
        config,
        out,
        scale,
        images=images,
        start=start,
    )
    last = result["last"]
    known = [(key.replace("_", " "), key) for key in PRETEXT_METRICS if key in last]
    neighbours = f", neighbours right on validation {last['knn_val']:.1%}" if "knn_val" in last else ""
    return {
        "summary": (
            f"{result['steps']} steps, {result['parameters']:,} parameters, loss {last.get('loss', float('nan')):.3f}, "
            f"{', '.join(f'{name} {last[key]:.1%}' for name, key in known)}{neighbours}, "
            f"{result['images_per_s']:,.0f} images/s, waiting for data {last.get('data_wait', 0.0):.0%}"
        ),
        **result,
    }


LOOKED_AT = 32
"""Images whose sizes are asked before a pretraining begins."""


def check_images(images: Corpus) -> None:
    """Raises SourceError if there is nothing to pretrain on."""
    if not any(images.num_images(split) for split in PRETRAINING):
        raise SourceError(f"{images.path} has no labeled or unlabeled images to pretrain on; give --unlabeled SOURCE")


def warn_of_queue(config: PretrainConfig, images: Corpus) -> None:
    """Say so if a queue holds more keys than there are images. It is no error: HPT keeps MoCo's 65,536 on sets of 2,000."""
    count = round(config.share * sum(images.num_images(split) for split in PRETRAINING))
    if config.held_keys() > count:
        print(
            f"note: a queue of {config.held_keys():,} keys for {count:,} images: every image meets its own older keys as "
            "negatives. If the contrastive accuracy stays near 0, lower the queue of this phase, in whole batches",
            flush=True,
        )


def check_sizes(
    images: Corpus, pixels: int, settings: str = "pretrain.preprocess.size", allow: str = "pretrain.enlarge"
) -> None:
    """Raises ConfigError if most images are smaller than the crops: enlarged pixels cost time and say nothing.

    Args:
        settings, allow: where a user changes the size, or says that images may be enlarged.
    """
    shard = next(shard for split in PRETRAINING for shard in images.shards(split))
    data = read_encoded(images, shard, np.arange(min(LOOKED_AT, shard.num_rows)))
    sides, decoding = [], decoding_of(images)
    for item in data:
        try:
            sides.append(min(open_rgb(item, decoding).size))
        except ValueError:
            continue  # the loader counts what is broken
    if sides and statistics.median(sides) < pixels:
        raise ConfigError(
            f"the images are smaller than the crop: {statistics.median(sides):.0f} pixels (median of {len(sides)}) against "
            f"{settings}={pixels}; lower it (for all steps), or enlarge them with --set {allow}=true"
        )
