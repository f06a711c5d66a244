"""LARS as SimCLR uses it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates: v = m v + lr * trust * (g + wd w); w = w - v; trust = 0.001 |w| / |g + wd w|.

    Implements: You et al., *Large batch training of convolutional networks* (2017), in the form of SimCLR's
    `lars_optimizer.py`. Groups with `adapt=False` (norms, biases, the classifier on top) take plain momentum steps.

    Ours, because two things differ in the libraries' versions and both matter here: lightly's stops adapting where weight
    decay is zero, which is how SimCLRv2 fine-tunes; and timm's (which can be told to adapt always) keeps the rate outside
    the momentum, so that a warm-up's small steps come back at the full rate, and takes |g| + wd |w| for the norm of the sum.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; `closure` is not used."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                update = weight.grad
                if group["weight_decay"]:
                    update = update.add(weight, alpha=group["weight_decay"])
                if group["adapt"]:
                    update = update * _trust(weight, update, group["trust"])
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].mul_(group["momentum"]).add_(update, alpha=group["lr"])
                weight.sub_(state["momentum"])


def _trust(weight: torch.Tensor, update: torch.Tensor, coefficient: float) -> torch.Tensor:
    """coefficient * |w| / |update|; 1 where either is zero."""
    length, change = weight.norm(), update.norm()
    usable = (length > 0) & (change > 0)
    return torch.where(usable, coefficient * length / change.clamp(min=1e-30), torch.ones_like(length))
