"""What a training method answers, and the settings that every training run has. There is one loop for all methods."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from ssl_ray.nets.batchnorm import is_batch_norm
from ssl_ray.settings.training import LoopConfig


@dataclass
class Batch:
    """One worker's part of a step on its device; labeled images stand first."""

    images: torch.Tensor  # uint8 [n, 3, H, W]; two crops of every image, the first ones first, where decoding draws them
    labeled: Any  # int64 [n_labeled], or what stands in the images, by name (methods.scenes.Found); None without labels
    pseudo: Any  # int64 [n_pseudo], float32 [n_pseudo, C], or as above
    rows: np.ndarray  # int64 [n], positions in the global batch
    total: int
    beside: Batch | None = None  # images of another set in the same step, with labels

    def __len__(self) -> int:
        return len(self.rows)


class Trained(Protocol):
    """A model on its way. Its state dict holds all state of the method: averages, queues and their pointers."""

    net: nn.Module

    @property
    def used(self) -> nn.Module:
        """What the checkpoint keeps: the weights to label, evaluate and fine-tune with."""
        ...


class Method(Protocol):
    """What one training step means. `Loop` asks nothing else."""

    @property
    def config(self) -> LoopConfig: ...

    def build(self, start: dict[str, torch.Tensor] | None = None) -> Any:
        """A fresh `Trained` module; `start` holds weights to begin with."""

    def loss(self, model: Any, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of this worker's part, and metrics as detached scalars."""

    def after_step(self, model: Any, step: int) -> None:
        """What follows the optimiser's step: averages and queues move."""

    def set_training(self, model: Any) -> None:
        """Training mode, with what stays as it is left out."""

    def measure(self, model: Any, step: int) -> dict[str, float]:
        """What is worth a look now and then; raises HealthError where going on is pointless."""

    def describe(self) -> dict[str, Any]:
        """What is needed to rebuild the net for inference."""


def train_mode(net: nn.Module) -> None:
    """Training mode; batch norms whose parameters are all fixed keep their statistics."""
    net.train()
    for module in net.modules():
        if is_batch_norm(module) and not any(p.requires_grad for p in module.parameters(recurse=False)):
            module.eval()


@torch.no_grad()
def move_average(average: nn.Module, net: nn.Module, decay: float, *, buffers: bool = True) -> None:
    """average <- decay * average + (1 - decay) * net, over parameters and, if asked, batch-norm statistics."""
    averaged, current = (
        {name: value for name, value in _tensors(module, buffers) if value.is_floating_point()} for module in (average, net)
    )
    torch._foreach_lerp_([averaged[name] for name in current], list(current.values()), 1 - decay)


def _tensors(module: nn.Module, buffers: bool) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    if buffers:
        yield from module.named_buffers()
