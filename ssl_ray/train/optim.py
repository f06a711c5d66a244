"""Optimiser and learning rate from a recipe's settings."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ssl_ray.nets import Classifier
from ssl_ray.settings.training import OptimConfig, ScheduleConfig


def make_optimizer(net: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels only, unless `decay_all`: norms and biases are left alone (the released code of
    EfficientNet decays biases). A group's `factor` times the scheduled rate is its rate."""
    decayed = [p for p in net.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in net.parameters() if p.requires_grad and p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": config.weight_decay if config.decay_all else 0.0},
    ]
    if isinstance(net, Classifier) and (config.head_factor != 1 or config.name == "lars"):
        for group in list(groups):
            head = [p for p in group["params"] if p is net.head.weight or p is net.head.bias]
            group["params"] = [p for p in group["params"] if p is not net.head.weight and p is not net.head.bias]
            groups.append({**group, "params": head, "factor": config.head_factor})
    if config.name == "lars":
        from ssl_ray.train.lars import LARS

        # SimCLR decays the classifier and does not adapt it: at zero it would hardly move.
        for group in groups[1:]:
            group["adapt"] = False
        return LARS(groups, lr=config.lr, momentum=config.momentum)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov and config.momentum > 0)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    from timm.optim import RMSpropTF  # epsilon inside the root, mean square starting at one: TensorFlow's, as published

    return RMSpropTF(groups, lr=config.lr, alpha=0.9, eps=1e-3, momentum=config.momentum)


def total_steps(config: ScheduleConfig, steps_per_epoch: float) -> int:
    return max(1, round(_in_steps(config, config.length, steps_per_epoch)))


def learning_rate(config: ScheduleConfig, peak: float, step: int, steps_per_epoch: float) -> float:
    """The rate at a step: linear warm-up, then cosine to zero, an exponential staircase, or constant.

    The staircase counts from step 0 and the warm-up overrides its beginning, as in the released code.
    """
    warmup = _in_steps(config, config.warmup, steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if config.decay == "constant":
        return peak
    if config.decay == "staircase":
        return peak * config.decay_rate ** math.floor(step / _in_steps(config, config.decay_every, steps_per_epoch))
    length = total_steps(config, steps_per_epoch)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, length - warmup)))


def _in_steps(config: ScheduleConfig, value: float, steps_per_epoch: float) -> float:
    return value * steps_per_epoch if config.unit == "epochs" else value
