"""What every layer of a net is worth: linear classifiers on all of them in one pass, then their scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from ssl_ray.artifacts import Checkpoint, Corpus, Features, Scores
from ssl_ray.config import Config
from ssl_ray.errors import SourceError
from ssl_ray.scale import Scale
from ssl_ray.settings.training import LayerProbeConfig
from ssl_ray.stage import stage
from ssl_ray.stages.train import check_same_net
from ssl_ray.storage import Folder
from ssl_ray.train.fit import fit


@stage(Checkpoint, resumable=True)
def probe_layers(
    config: LayerProbeConfig, out: Folder, scale: Scale, *, images: Corpus, model: Checkpoint | None
) -> dict[str, Any]:
    """Train the classifiers on the labeled images; the net stays as it is. It goes on after a kill.

    Args:
        model: the net to judge; None: random weights.

    Raises:
        ConfigError: another net, or it has no layer of that name.
        SourceError: there are no labels.
    """
    if model is not None:
        check_same_net(config.net, model)
    result = fit("layer-probe", config, out, scale, images=images, start=model)
    last = result["last"]
    found = "; ".join(f"{name} {last.get(f'accuracy_{name}', float('nan')):.1%}" for name in config.layers)
    return {"summary": f"{result['steps']} steps, right in training: {found}", **result}


class JudgeConfig(Config):
    model: str  # the name in the score table
    seed: int = 0
    splits: tuple[str, ...] = ("val", "test")  # those that the corpus has


@stage(Scores)
def judge_layers(
    config: JudgeConfig, out: Folder, scale: Scale, *, images: Corpus, probes: Checkpoint, logits: Features
) -> dict[str, Any]:
    """Top-1 of every layer, from the probes' stored logits (`extract` of what `probe_layers` made).

    Raises:
        SourceError: there are no images of these splits.
    """
    layers = list(probes.model["probed"]["layers"])
    rows: list[dict[str, Any]] = []
    for split in config.splits:
        shards = images.shards(split)
        if not shards:
            continue
        vectors, shard, row = logits.table(shards)
        labels = {s.shard: images.rows(s.shard, ["label"])["label"].to_numpy() for s in shards}
        truth = np.array([labels[a][b] for a, b in zip(shard.tolist(), row.tolist(), strict=True)], np.int64)
        best = vectors.reshape(len(vectors), len(layers), -1).argmax(axis=2)
        for number, name in enumerate(layers):
            value = float((best[:, number] == truth).mean())
            rows.append({"model": config.model, "layer": name, "seed": config.seed, "split": split, "metric": "top1",
                         "value": value, "n": len(truth)})  # fmt: skip
    if not rows:
        raise SourceError(f"there are no {' or '.join(config.splits)} images to judge layers on; give --test")
    last = rows[-1]["split"]
    found = "; ".join(f"{row['layer']} {row['value']:.2%}" for row in rows if row["split"] == last)
    return {"summary": f"{last} top-1: {found} (n={rows[-1]['n']:,})", "scores": rows}
