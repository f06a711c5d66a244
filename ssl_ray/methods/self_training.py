"""One training step of Noisy Student: cross-entropy on labeled and pseudo-labeled images, under noise, with an EMA.

Implements: Noisy Student (Xie et al., CVPR 2020), Algorithm 1, steps 1 (the teacher: labeled images alone) and 3 (the
student); the optimiser settings are those of the released code.

Differs from the paper: the paper's images are 224 pixels and more, its optimiser is RMSProp; recipes for small images use
SGD. The exponential moving average covers parameters and batch-norm statistics, as in the released code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ssl_ray.losses.self_training import combine, cross_entropy
from ssl_ray.methods.method import Batch, move_average, train_mode
from ssl_ray.nets import Classifier, build_net, freeze
from ssl_ray.randomness import BatchDraw, seed_of
from ssl_ray.settings.training import TrainConfig
from ssl_ray.views.policy import augment, normalize

Teacher = Callable[[torch.Tensor], torch.Tensor]


class NetWithAverage(nn.Module):
    """The net that learns, and the moving average that is used. One state dict holds all state of the method."""

    def __init__(self, net: Classifier, average: bool):
        super().__init__()
        self.net = net
        self.average = copy.deepcopy(net).eval().requires_grad_(False) if average else None

    @property
    def used(self) -> Classifier:
        """The weights for labelling and evaluation."""
        return self.average if self.average is not None else self.net


class SelfTraining:
    """The method: `views`, `build`, `loss` and `after_step`, over `TrainConfig`."""

    def __init__(self, config: TrainConfig, num_classes: int, teacher: Teacher | None = None):
        """
        Args:
            teacher: uint8 images [n, 3, H, W] or augmented ones, 0..255 -> logits; for `pseudo.teacher=live`.
        """
        self.config = config
        self.num_classes = num_classes
        self.teacher = teacher

    def build(self, start: dict[str, torch.Tensor] | None = None) -> NetWithAverage:
        """A fresh model; `start` holds weights to begin with (warm start)."""
        torch.manual_seed(seed_of(self.config.seed, "init") % 2**63)
        net = build_net(self.config.net, self.num_classes, load=start is None)
        if start is not None:
            net.begin_with(start, fresh_head=self.config.fresh_head, layers=self.config.take)
        freeze(net, self.config.freeze)
        return NetWithAverage(net, self.config.ema is not None)

    def views(self, batch: Batch, step: int) -> torch.Tensor:
        """Augmented, float32 [n, 3, H, W], 0..255."""
        draw = BatchDraw((self.config.seed, "views", step), batch.total, batch.rows)
        return augment(batch.images, self.config.view, draw, self._noised(batch))

    def loss(self, model: NetWithAverage, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of this worker's part, and metrics as detached scalars."""
        noise = model.net.noise
        noise.draw = BatchDraw((self.config.seed, "noise", step), batch.total, batch.rows)
        noise.noised = self._noised(batch)
        views = self.views(batch, step)
        logits = model.net(normalize(views, self.config.preprocess))
        noise.draw = noise.noised = None
        count = 0 if batch.labeled is None else len(batch.labeled)
        metrics: dict[str, torch.Tensor] = {}
        labeled = pseudo = None
        if batch.labeled is not None:
            labeled = cross_entropy(logits[:count], batch.labeled, self.config.label_smoothing)
            metrics["loss_labeled"] = labeled.detach()
            metrics["accuracy_labeled"] = (logits[:count].argmax(1) == batch.labeled).float().mean()
        targets = batch.pseudo if self.teacher is None else self._live_targets(views[count:])
        if targets is not None:
            pseudo = cross_entropy(
                logits[count:] / self.config.pseudo.student_temperature, targets, self.config.label_smoothing
            )
            metrics["loss_pseudo"] = pseudo.detach()
        total: torch.Tensor | None
        if labeled is not None and pseudo is not None:
            total = combine(labeled, pseudo, self.config.ratio, self.config.combination, self.config.alpha)
        else:
            total = labeled if labeled is not None else pseudo
        assert total is not None
        return total, metrics

    def after_step(self, model: NetWithAverage, step: int) -> None:
        """Move the average with decay min(ema, (1 + step) / (10 + step)): the released ramp, which begins one step later."""
        if model.average is not None and self.config.ema is not None:
            move_average(model.average, model.net, min(self.config.ema, (1 + step) / (10 + step)))

    def measure(self, model: NetWithAverage, step: int) -> dict[str, float]:
        return {}

    @torch.no_grad()
    def _live_targets(self, views: torch.Tensor) -> torch.Tensor:
        """The teacher's soft labels of the views that the student gets, float32 [n, C]."""
        assert self.teacher is not None
        return (self.teacher(views).float() / self.config.pseudo.temperature).softmax(dim=1)

    def _noised(self, batch: Batch) -> torch.Tensor | None:
        """Rows under noise, or None for all: the ablation leaves pseudo-labeled images alone."""
        if self.config.pseudo.noise or self.config.mix == "labeled":
            return None
        count = 0 if batch.labeled is None else len(batch.labeled)
        return torch.arange(len(batch), device=batch.images.device) < count

    def set_training(self, model: NetWithAverage) -> None:
        """Training mode; frozen batch norms keep their statistics."""
        train_mode(model.net)

    def describe(self) -> dict[str, Any]:
        """What is needed to rebuild the net for inference."""
        return {
            "net": self.config.net.model_dump(mode="json"),
            "preprocess": self.config.preprocess.model_dump(mode="json"),
            "num_classes": self.num_classes,
        }
