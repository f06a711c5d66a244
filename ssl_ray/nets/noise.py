"""Model noise: dropout and stochastic depth whose draws are addressed and can be off for single images.

Library nets draw from torch's global generator, for the batch of one process. Here a step installs a `BatchDraw` for the
global batch: an image meets the same dropped paths on one worker and on eight, and after a restart; and the ablation
"noise off for unlabeled images" can share one forward pass, and so one batch norm, with the noised ones.
"""

from __future__ import annotations

import torch
from torch import nn

from ssl_ray.randomness import BatchDraw


class NoiseSource:
    """What the noise modules of one net share: the draws of the current step, and which rows are noised."""

    def __init__(self) -> None:
        self.draw: BatchDraw | None = None
        self.noised: torch.Tensor | None = None  # bool [n]; None: all rows

    def keep_mask(self, x: torch.Tensor, drop: float, per_element: bool) -> torch.Tensor:
        """Zeros and 1 / (1 - drop), broadcastable to x: by image, or by element of the last dimension."""
        shape = x.shape[1:] if per_element else ()
        if self.draw is None or self.draw.count != len(x):  # a forward pass outside the training loop
            uniform = torch.rand((len(x), *shape), device=x.device)
        else:
            uniform = torch.from_numpy(self.draw.uniform(*shape)).to(x.device)
        mask = (uniform >= drop).to(x.dtype) / (1.0 - drop)
        mask = mask.reshape(len(x), *(shape or (1,) * (x.ndim - 1)))
        if self.noised is not None:
            mask = torch.where(self.noised.reshape(-1, *(1,) * (x.ndim - 1)), mask, torch.ones_like(mask))
        return mask


class _Noise(nn.Module):
    per_element = False

    def __init__(self, drop: float, source: NoiseSource):
        super().__init__()
        self.drop = drop
        self.source = source

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.drop == 0.0:
            return x
        return x * self.source.keep_mask(x, self.drop, self.per_element)

    def extra_repr(self) -> str:
        return f"drop={self.drop}"


class Dropout(_Noise):
    """Elements are zeroed with probability `drop`, the others scaled by 1 / (1 - drop)."""

    per_element = True


class DropPath(_Noise):
    """Stochastic depth: a residual branch is left out for an image with probability `drop`."""


def adopt(net: nn.Module, source: NoiseSource) -> None:
    """Replace the dropout and stochastic-depth modules of a timm or torchvision net by ours, in place."""
    for name, child in list(net.named_children()):
        kind = type(child).__name__
        if isinstance(child, nn.Dropout):
            setattr(net, name, Dropout(child.p, source))
        elif kind == "DropPath" and not isinstance(child, _Noise):  # timm
            setattr(net, name, DropPath(float(getattr(child, "drop_prob", 0.0) or 0.0), source))
        elif kind == "StochasticDepth":  # torchvision
            setattr(net, name, DropPath(float(child.p), source))  # type: ignore[arg-type]
        else:
            adopt(child, source)
