"""How well nearest neighbours tell classes while a net pretrains without labels: the cheapest curve of its progress."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import nn

from ssl_ray.artifacts import Corpus
from ssl_ray.data.shards import decode_all, decoding_of, read_encoded
from ssl_ray.probes.knn import knn_predict
from ssl_ray.randomness import generator
from ssl_ray.scale import Scale
from ssl_ray.settings.training import LoopConfig
from ssl_ray.views.policy import normalize

BANK, QUERIES = 4000, 1000
"""Labeled images to look among, and validation images to ask for, at most."""

HELD = 256 * 2**20
"""Bytes of decoded images that they may take; larger images are fewer."""


def neighbours(images: Corpus, config: LoopConfig, scale: Scale) -> Callable[[nn.Module], dict[str, float]] | None:
    """A look at a model (`model.used.features`): `knn_val`, the share of validation images whose neighbours are right.

    None where the corpus has no labels or no validation images. Training never sees these numbers.
    """
    if not images.classes or images.label_sets is not None or not images.num_images("val") or not images.num_images("train"):
        return None
    fewer = min(1.0, HELD / ((BANK + QUERIES) * 3 * config.preprocess.size**2))
    with ThreadPoolExecutor(scale.decode_threads) as pool:
        bank = _draw(images, "train", round(fewer * BANK), config, pool)
        asked = _draw(images, "val", round(fewer * QUERIES), config, pool)

    def look(model: nn.Module) -> dict[str, float]:
        net: nn.Module = model.used  # type: ignore[assignment]
        was = [(module, module.training) for module in net.modules()]
        net.eval()
        known, wanted = (_features(net, pixels, config) for pixels in (bank[0], asked[0]))
        for module, training in was:  # frozen norms were in eval mode before, too
            module.training = training
        found = knn_predict(known, bank[1], wanted, num_classes=len(images.classes), k=min(200, len(bank[1])))
        return {"knn_val": float((found.argmax(axis=1) == asked[1]).mean())}

    return look


def _draw(images: Corpus, split: str, most: int, config: LoopConfig, pool: ThreadPoolExecutor) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [n, S, S, 3] and labels int64 [n] of at most so many images of a split, the same ones every time."""
    shards, pixels, labels = images.shards(split), [], []
    share = min(1.0, most / images.num_images(split))
    for shard in shards:
        count = max(1, round(share * shard.num_rows))
        rows = np.sort(generator(config.seed, "neighbours", shard.shard).permutation(shard.num_rows)[:count])
        encoded = read_encoded(images, shard, rows, pool)
        found, failures = decode_all(encoded, config.preprocess, pool, decoding=decoding_of(images))
        good = np.setdiff1d(np.arange(len(rows)), [position for position, _ in failures])
        pixels.append(found[good])
        labels.append(images.rows(shard.shard, ["label"])["label"].to_numpy()[rows[good]])
    return np.concatenate(pixels), np.concatenate(labels).astype(np.int64)


@torch.inference_mode()
def _features(net: nn.Module, pixels: np.ndarray, config: LoopConfig, batch: int = 256) -> np.ndarray:
    device, parts = next(net.parameters()).device, []
    for start in range(0, len(pixels), batch):
        images = torch.from_numpy(pixels[start : start + batch]).to(device).permute(0, 3, 1, 2)
        parts.append(net.features(normalize(images, config.preprocess)).float().cpu().numpy())  # type: ignore[operator]
    return np.concatenate(parts)
