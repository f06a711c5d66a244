"""Histograms of oriented gradients: the features that nobody trained, against which learned ones are measured."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ssl_ray.errors import ConfigError
from ssl_ray.settings.nets import HOGConfig


class HOG(nn.Module):
    """uint8 [n, 3, S, S] -> float32 [n, D], by scikit-image, on the CPU."""

    def __init__(self, config: HOGConfig):
        super().__init__()
        self.config = config
        try:
            import skimage.feature  # noqa: F401
        except ImportError:
            raise ConfigError("HOG needs the extra `hog`: pip install 'ssl-ray[hog]'") from None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        from skimage.feature import hog

        chosen = self.config
        if min(images.shape[2:]) < chosen.cell * chosen.block:
            raise ConfigError(
                f"images of {min(images.shape[2:])} pixels hold no block of {chosen.block} x {chosen.block} cells of "
                f"{chosen.cell} "
                "pixels; lower hog.cell, or take a larger preprocess.size"
            )
        found = [
            hog(
                image,
                orientations=chosen.orientations,
                pixels_per_cell=(chosen.cell, chosen.cell),
                cells_per_block=(chosen.block, chosen.block),
                channel_axis=2,
            )
            for image in images.permute(0, 2, 3, 1).cpu().numpy()
        ]
        return torch.from_numpy(np.stack(found).astype(np.float32)).to(images.device)
