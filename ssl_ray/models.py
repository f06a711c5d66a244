"""A trained model, for whoever wants to use it: `load_model("runs/noisy_student/1/student").predict("image.png")`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ssl_ray.artifacts import Checkpoint
from ssl_ray.nets import NetConfig, build_net
from ssl_ray.nets.weights import own_checkpoint
from ssl_ray.views.decode import Preprocess, open_rgb, whole
from ssl_ray.views.policy import normalize


class TrainedModel(nn.Module):
    """A net in eval mode with its preprocessing and class names."""

    def __init__(self, description: dict[str, Any], weights: dict[str, torch.Tensor]):
        super().__init__()
        self.classes: list[str] = list(description["classes"])
        self.preprocess = Preprocess.model_validate(description["preprocess"])
        net = NetConfig.model_validate(description["net"])
        self.net = build_net(net, int(description["num_classes"]), load=False)
        self.net.load_state_dict(weights)
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [n, 3, S, S] -> logits float32 [n, C]."""
        return self.net(normalize(images, self.preprocess)).float()

    @torch.inference_mode()
    def probs(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [n, S, S, 3] -> softmax, float32 [n, C]."""
        device = next(self.parameters()).device
        images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
        return self(images).softmax(dim=1).cpu().numpy()

    def predict(self, images: str | Path | Sequence[str | Path]) -> list[tuple[str, float]]:
        """Class and confidence for image files."""
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
