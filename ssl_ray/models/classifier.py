"""A trained classifier or encoder, for use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ssl_ray.models.inference import Inference
from ssl_ray.nets import LibraryClassifier, build_described
from ssl_ray.nets.clusters import Centroids
from ssl_ray.nets.hog import HOG
from ssl_ray.nets.layers import layer_features
from ssl_ray.settings.nets import HOGConfig, LayerConfig
from ssl_ray.views.decode import open_rgb, whole
from ssl_ray.views.policy import normalize


class TrainedModel(Inference):
    """A net in eval mode with its preprocessing and class names.

    Where there are centroids, classes are clusters: the nearest one of the features of a layer. A net may be a descriptor that
    nobody trained (HOG).
    """

    def __init__(
        self,
        description: dict[str, Any],
        weights: dict[str, torch.Tensor],
        centroids: dict[str, torch.Tensor] | None = None,
    ):
        super().__init__(description)
        self.layer = None if description.get("layer") is None else LayerConfig.model_validate(description["layer"])
        self.net: nn.Module
        if "hog" in description:
            self.net = HOG(HOGConfig.model_validate(description["hog"]))
        else:
            self.net = build_described(description)
        self.net.load_state_dict(weights)
        self.clusters: Centroids | None = None
        if centroids is not None:
            self.clusters = Centroids(description["clusters"])
            self.clusters.load_state_dict(centroids)
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [n, 3, S, S] -> logits float32 [n, C]."""
        if self.clusters is not None:
            found: torch.Tensor = self.clusters(self._features(images))
            return found
        return self.net(normalize(images, self.preprocess)).float()

    @torch.inference_mode()
    def probs(self, pixels: np.ndarray, batch: int | None = None) -> np.ndarray:
        """uint8 [n, S, S, 3] -> softmax, float32 [n, C].

        Args:
            batch: always compute on so many images, the last ones black: kernels differ with the size of a batch, and with
                them the last digits of what they give. None: on as many as there are.
        """
        rows = self._rows(self, pixels, batch, lambda logits: logits.softmax(dim=1))
        return rows if len(pixels) else np.empty((0, len(self.classes)), np.float32)

    @torch.inference_mode()
    def features(self, pixels: np.ndarray, batch: int | None = None) -> np.ndarray:
        """uint8 [n, S, S, 3] -> what the backbone gives, pooled, or `self.layer`; float32 [n, D]; `batch` as for `probs`. n
        > 0."""
        return self._rows(self._features, pixels, batch, lambda features: features)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        if isinstance(self.net, HOG):
            return self.net(images)
        x = normalize(images, self.preprocess)
        if self.layer is None:
            return self.net.features(x).float()  # type: ignore[operator]
        backbone = self.net.net if isinstance(self.net, LibraryClassifier) else self.net.backbone
        return layer_features(backbone, x, self.layer)  # type: ignore[arg-type]

    def _rows(
        self,
        compute: Callable[[torch.Tensor], torch.Tensor],
        pixels: np.ndarray,
        batch: int | None,
        finish: Callable[[torch.Tensor], torch.Tensor],
    ) -> np.ndarray:
        parts = [finish(found[:count]).cpu().numpy() for found, count in self._batches(compute, pixels, batch)]
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)

    def try_out(self, pixels: np.ndarray) -> None:
        (self.probs if self.classes else self.features)(pixels)

    def predict(self, images: str | Path | Sequence[str | Path]) -> list[tuple[str, float]]:
        """Class and confidence for image files."""
        if not self.classes:
            raise ValueError("a pretrained encoder knows no classes; use features(), or fine-tune it first")
        paths = [images] if isinstance(images, str | Path) else list(images)
        pixels = np.stack([whole(open_rgb(Path(path).read_bytes(), self.decoding), self.preprocess) for path in paths])
        probs = self.probs(pixels)
        return [(self.classes[best], float(row[best])) for row, best in zip(probs, probs.argmax(1), strict=True)]
