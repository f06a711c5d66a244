"""Centroids as the last layer of a net: features in, logits of clusters out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Centroids(nn.Module):
    """What k-means found, as a classifier: float [n, D] -> logits float32 [n, k].

    A logit is -|x - c|^2 / (2 s^2) with s^2 = inertia / (n d). Its softmax is the posterior of the mixture of round
    Gaussians of one variance and equal weights that k-means is the hard form of; the largest is the nearest centroid.
    """

    def __init__(self, shapes: dict[str, Any]):
        """
        Args:
            shapes: `features` D, `dim` d, `k`, and whether there are `pca` and `normalise`.
        """
        super().__init__()
        features, dim, k = int(shapes["features"]), int(shapes["dim"]), int(shapes["k"])
        self.normalise = bool(shapes["normalise"])
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("projection", torch.zeros(features, dim) if shapes["pca"] else None)
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("centroids", torch.zeros(k, dim))
        self.register_buffer("variance", torch.ones((), dtype=torch.float64))
        self.mean: torch.Tensor
        self.projection: torch.Tensor | None
        self.centre: torch.Tensor
        self.centroids: torch.Tensor
        self.variance: torch.Tensor

    def points(self, features: torch.Tensor) -> torch.Tensor:
        """Stored features as k-means saw them, but for its grid."""
        x = features.float() - self.mean
        if self.projection is not None:
            x = x @ self.projection
        if self.normalise:
            x = F.normalize(x, dim=1)
        return x - self.centre

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            x = self.points(features)
            distance = torch.addmm(self.centroids.square().sum(dim=1), x, self.centroids.T, alpha=-2)
            distance = (distance + x.square().sum(dim=1, keepdim=True)).clamp(min=0)
            return -distance / (2 * float(self.variance))
