"""A model from labels, or from labels and pseudo-labels."""

from __future__ import annotations

from typing import Any

from ssl_ray.artifacts import Checkpoint, Corpus, PseudoLabels, Selection
from ssl_ray.errors import ConfigError
from ssl_ray.methods.self_training import TrainConfig
from ssl_ray.scale import Scale
from ssl_ray.stage import stage
from ssl_ray.storage import Folder
from ssl_ray.train.fit import fit


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
) -> dict[str, Any]:
    """Train on Ray Train; killed at any moment, it goes on from its last checkpoint.

    Args:
        labels, selection: pseudo-labels and which of them to use, for `mix` "joint" and "pseudo".
        start: weights to begin with (warm start, fine-tuning); the net must be the same.

    Raises:
        ConfigError: `start` is a checkpoint of another net.
    """
    if start is not None:
        _check_same_net(config, start)
    result = fit(config.model_dump(mode="json"), out, scale, images=images, labels=labels, selection=selection, start=start)
    last = result["last"]
    return {
        "summary": (
            f"{result['steps']} steps, {result['parameters']:,} parameters, loss {last.get('loss', float('nan')):.3f}, "
            f"{result['images_per_s']:,.0f} images/s, waiting for data {last.get('data_wait', 0.0):.0%}"
        ),
        **result,
    }


def _check_same_net(config: TrainConfig, start: Checkpoint) -> None:
    keys = ("name", "width", "blocks", "stem_stride")
    old, new = start.model["net"], config.net.model_dump(mode="json")
    changed = [f"net.{key}: {old[key]} -> {new[key]}" for key in keys if old[key] != new[key]]
    if changed:
        raise ConfigError(
            f"a warm start needs the net that {start.record.name} has ({'; '.join(changed)}); set warm_start=false "
            "or the same net"
        )
