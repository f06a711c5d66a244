"""A linear classifier on frozen features: the usual measure of what a representation holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ssl_ray.errors import ConfigError
from ssl_ray.probes.metrics import score
from ssl_ray.randomness import generator
from ssl_ray.settings.training import LinearConfig


@dataclass(frozen=True)
class Probe:
    """What a probe found: weights for raw features, and how they were chosen."""

    weight: np.ndarray  # float32 [C, d]
    bias: np.ndarray  # float32 [C]
    rate: float
    step: int
    val: float  # the metric on validation

    def predict(self, features: np.ndarray) -> np.ndarray:
        """float [n, d] -> logits float32 [n, C]."""
        return features.astype(np.float32) @ self.weight.T + self.bias


def linear_probe(
    config: LinearConfig,
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    *,
    num_classes: int,
    metric: str,
    address: Sequence[int | str],
) -> Probe:
    """Train a classifier for every rate of the grid, all side by side; keep the rate and step that are best on validation.

    Implements: the linear evaluation of HPT (Reed et al., WACV 2022): SGD with momentum, the rate falls to a tenth at a third
    and at two thirds of the steps, the best validation of the second half is what is reported on test.

    Differs from the paper: features are extracted once, without crops and flips; no L2 penalty unless `weight_decay` is set.

    Args:
        train, val: features float [n, d], and labels int [n] or 0/1 [n, num_classes].
        metric: "top1" or "auroc" (`probes.metrics.score`).
        address: of the draws of the batches.
    """
    features, labels = train
    mean, deviation = _standard(features) if config.standardize else (np.zeros(1, np.float32), np.ones(1, np.float32))
    x, y = torch.from_numpy((features.astype(np.float32) - mean) / deviation), torch.from_numpy(labels)
    x_val = torch.from_numpy((val[0].astype(np.float32) - mean) / deviation)
    rates = torch.tensor(config.rates)
    weight = torch.zeros(len(rates), num_classes, x.shape[1])
    bias = torch.zeros(len(rates), num_classes)
    moving = torch.zeros_like(weight), torch.zeros_like(bias)
    draw, batch = generator(*address, "probe"), min(config.batch, len(x))
    first = config.steps // 2
    looks = set(np.linspace(config.steps, first, config.looks, dtype=int, endpoint=False).tolist())
    best: Probe | None = None
    for step in range(1, config.steps + 1):
        index = torch.from_numpy(draw.integers(0, len(x), batch))
        gradient_weight, gradient_bias = _gradients(weight, bias, x[index], y[index])
        factor = 0.1 ** sum(step > config.steps * part / 3 for part in (1, 2))
        for value, gradient, momentum in zip((weight, bias), (gradient_weight, gradient_bias), moving, strict=True):
            momentum.mul_(config.momentum).add_(gradient + config.weight_decay * value)
            value.sub_(factor * rates.reshape(-1, *(1,) * (value.ndim - 1)) * momentum)
        if step in looks:
            for number, rate in enumerate(config.rates):
                if not bool(torch.isfinite(weight[number]).all()):
                    continue
                found = score((x_val @ weight[number].T + bias[number]).numpy(), val[1], metric)
                if best is None or found > best.val or math.isnan(best.val):
                    best = _unscaled(weight[number].numpy(), bias[number].numpy(), mean, deviation, rate, step, found)
    if best is None:
        raise ConfigError("no rate of the grid gave finite weights; lower probe.linear.rates")
    return best


def _gradients(weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the mean cross-entropy (several labels an image: binary, summed over classes), for every rate at once."""
    logits = torch.einsum("nd,rcd->rnc", x, weight) + bias[:, None]
    if y.ndim == 2:
        error = torch.sigmoid(logits) - y.float()
    else:
        error = logits.softmax(dim=2) - F.one_hot(y.long(), logits.shape[2]).float()
    error = error / len(x)
    return torch.einsum("rnc,nd->rcd", error, x), error.sum(dim=1)


def _standard(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    return mean.astype(np.float32), np.maximum(deviation, 1e-6).astype(np.float32)


def _unscaled(weight: np.ndarray, bias: np.ndarray, mean: np.ndarray, deviation: np.ndarray, *chosen: Any) -> Probe:
    scaled = weight / deviation
    return Probe(
        scaled.astype(np.float32), (bias - scaled @ np.broadcast_to(mean, scaled.shape[1:])).astype(np.float32), *chosen
    )
