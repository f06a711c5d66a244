"""A trained model, for whoever wants to use it: `load_model("runs/noisy_student/1/student").predict("image.png")`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ssl_ray.artifacts import Checkpoint
from ssl_ray.nets import LibraryClassifier, build_described
from ssl_ray.nets.clusters import Centroids
from ssl_ray.nets.hog import HOG, HOGConfig
from ssl_ray.nets.layers import LayerConfig, layer_features
from ssl_ray.nets.weights import own_checkpoint
from ssl_ray.precision import has_bfloat16
from ssl_ray.views.decode import Preprocess, open_rgb, whole
from ssl_ray.views.policy import normalize


class TrainedModel(nn.Module):
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
        super().__init__()
        self.classes: list[str] = list(description["classes"])
        self.preprocess = Preprocess.model_validate(description["preprocess"])
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
        self._bfloat16 = False

    @property
    def device(self) -> torch.device:
        return next(itertools.chain(self.parameters(), self.buffers()), torch.empty(0)).device

    def set_precision(self, precision: str) -> None:
        """float32, bfloat16, or auto: bfloat16 where the hardware itself computes in it."""
        self._bfloat16 = precision == "bfloat16" or (precision == "auto" and has_bfloat16(self.device))

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
        device = self.device
        parts = []
        for start in range(0, len(pixels), batch or len(pixels) or 1):
            part = pixels[start : start + (batch or len(pixels))]
            count = len(part)
            if batch is not None and count < batch:
                part = np.concatenate([part, np.zeros((batch - count, *part.shape[1:]), np.uint8)])
            # Pixels from Ray's object store are read-only, of which torch warns; a copy costs nothing beside the net.
            images = torch.from_numpy(part if part.flags.writeable else part.copy()).to(device).permute(0, 3, 1, 2)
            with torch.autocast(device.type, torch.bfloat16, enabled=self._bfloat16):
                found = compute(images)
            parts.append(finish(found[:count]).cpu().numpy())
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)

    def find_batch(self, largest: int = 1024) -> int:
        """The batch, a power of two, that labels most images a second on this device; what does not fit is left out."""
        best, best_rate = 32, 0.0
        size, batch = self.preprocess.size, 32
        compute = self.probs if self.classes else self.features
        while batch <= largest:
            pixels = np.zeros((batch, size, size, 3), np.uint8)
            try:
                compute(pixels)
                begin = time.perf_counter()
                for _ in range(2):
                    compute(pixels)
                rate = 2 * batch / (time.perf_counter() - begin)
            except (torch.OutOfMemoryError, MemoryError):
                break
            if rate > 1.05 * best_rate:
                best, best_rate = batch, rate
            elif rate < 0.8 * best_rate:
                break
            batch *= 2
        return best

    def predict(self, images: str | Path | Sequence[str | Path]) -> list[tuple[str, float]]:
        """Class and confidence for image files."""
        if not self.classes:
            raise ValueError("a pretrained encoder knows no classes; use features(), or fine-tune it first")
        paths = [images] if isinstance(images, str | Path) else list(images)
        pixels = np.stack([whole(open_rgb(Path(path).read_bytes()), self.preprocess) for path in paths])
        probs = self.probs(pixels)
        return [(self.classes[best], float(row[best])) for row, best in zip(probs, probs.argmax(1), strict=True)]


def load_model(path: str | Path) -> TrainedModel:
    """The model in a checkpoint folder, such as `runs/noisy_student/1/student`, local or on S3.

    Raises:
        FileNotFoundError: the folder holds no finished checkpoint.
    """
    checkpoint = Checkpoint(str(path))
    description = checkpoint.model
    centroids = own_checkpoint(checkpoint.path, "centroids.safetensors") if "clusters" in description else None
    weights = {} if "hog" in description else own_checkpoint(checkpoint.path)
    return TrainedModel(description, weights, centroids)
