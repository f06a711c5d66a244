"""A trained model, for whoever wants to use it: `load_model("runs/noisy_student/1/student").predict("image.png")`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ssl_ray.artifacts import Checkpoint
from ssl_ray.nets import NetConfig, build_trained
from ssl_ray.nets.projection import ProjectionConfig
from ssl_ray.nets.weights import own_checkpoint
from ssl_ray.precision import has_bfloat16
from ssl_ray.views.decode import Preprocess, open_rgb, whole
from ssl_ray.views.policy import normalize


class TrainedModel(nn.Module):
    """A net in eval mode with its preprocessing and class names."""

    def __init__(self, description: dict[str, Any], weights: dict[str, torch.Tensor]):
        super().__init__()
        self.classes: list[str] = list(description["classes"])
        self.preprocess = Preprocess.model_validate(description["preprocess"])
        net = NetConfig.model_validate(description["net"])
        projection = description.get("projection")
        projection = None if projection is None else ProjectionConfig.model_validate(projection)
        self.net = build_trained(net, int(description["num_classes"]), projection)
        self.net.load_state_dict(weights)
        self.eval().requires_grad_(False)
        self._bfloat16 = False

    def set_precision(self, precision: str) -> None:
        """float32, bfloat16, or auto: bfloat16 where the hardware itself computes in it."""
        self._bfloat16 = precision == "bfloat16" or (precision == "auto" and has_bfloat16(next(self.parameters()).device))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [n, 3, S, S] -> logits float32 [n, C]."""
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
        """uint8 [n, S, S, 3] -> what the backbone gives, pooled, float32 [n, D]; `batch` as for `probs`. n > 0."""
        return self._rows(self._features, pixels, batch, lambda features: features)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return self.net.features(normalize(images, self.preprocess)).float()  # type: ignore[operator]

    def _rows(
        self,
        compute: Callable[[torch.Tensor], torch.Tensor],
        pixels: np.ndarray,
        batch: int | None,
        finish: Callable[[torch.Tensor], torch.Tensor],
    ) -> np.ndarray:
        device = next(self.parameters()).device
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
    return TrainedModel(checkpoint.model, own_checkpoint(checkpoint.path))
