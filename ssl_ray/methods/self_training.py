"""One training step of Noisy Student: cross-entropy on labeled and pseudo-labeled images, under noise, with an EMA.

Implements: Noisy Student (Xie et al., CVPR 2020), Algorithm 1, steps 1 (the teacher: labeled images alone) and 3 (the
student); the optimiser settings are those of the released code.

Differs from the paper: the paper's images are 224 pixels and more, its optimiser is RMSProp; recipes for small images use
SGD. The exponential moving average covers parameters and batch-norm statistics, as in the released code.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from ssl_ray.config import Config
from ssl_ray.losses.self_training import Combination, combine, cross_entropy
from ssl_ray.nets import Classifier, NetConfig, build_net, freeze
from ssl_ray.nets.batchnorm import is_batch_norm
from ssl_ray.randomness import BatchDraw, seed_of
from ssl_ray.views.decode import Preprocess
from ssl_ray.views.policy import ViewConfig, augment, normalize


class OptimConfig(Config):
    name: Literal["sgd", "adamw", "rmsprop"] = "sgd"  # rmsprop: TensorFlow's, from timm
    lr: Annotated[float, Field(gt=0)] = 0.1  # at the global batch as it is: nothing is scaled behind the scenes
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4  # not on norms and biases
    clip_norm: Annotated[float, Field(gt=0)] | None = None


class ScheduleConfig(Config):
    """Lengths are in steps, or in epochs of the labeled images."""

    unit: Literal["steps", "epochs"] = "steps"
    length: Annotated[float, Field(gt=0)] = 300
    warmup: Annotated[float, Field(ge=0)] = 0
    decay: Literal["cosine", "staircase", "constant"] = "cosine"
    decay_every: Annotated[float, Field(gt=0)] = 2.4  # staircase
    decay_rate: Annotated[float, Field(gt=0, le=1)] = 0.97  # staircase


class PseudoConfig(Config):
    targets: Literal["soft", "hard"] = "soft"
    temperature: Annotated[float, Field(gt=0)] = 1.0  # of soft targets
    noise: bool = True  # off: unlabeled images are neither augmented nor dropped out (the paper's noise ablation)


class TrainConfig(Config):
    """Everything that one training run computes: net, noise, loss, optimiser, length."""

    net: NetConfig = NetConfig()
    preprocess: Preprocess = Preprocess()
    view: ViewConfig = ViewConfig()
    mix: Literal["labeled", "joint", "pseudo"] = "labeled"
    batch: Annotated[int, Field(ge=1)] = 64  # labeled images a step, over all workers
    ratio: Annotated[int, Field(ge=1)] = 1  # pseudo : labeled images in a step
    lanes: Annotated[int, Field(ge=1)] = 4  # parts of the batch that never straddle workers
    pseudo: PseudoConfig = PseudoConfig()
    combination: Combination = "algorithm1"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: Annotated[float, Field(gt=0, lt=1)] | None = 0.999
    batch_norm: Literal["sync"] | int = "sync"  # over the global batch, or over this many images of one worker
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 autocast where the hardware has it
    freeze: Annotated[int, Field(ge=0)] = 0  # first layers that stay as they are
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.batch % self.lanes:
            raise ValueError(f"batch {self.batch} does not divide into {self.lanes} lanes; change batch or lanes")
        return self

    def per_step(self) -> tuple[int, int]:
        """Labeled and pseudo-labeled images of a step."""
        labeled = self.batch if self.mix != "pseudo" else 0
        pseudo = self.batch * self.ratio if self.mix != "labeled" else 0
        return labeled, pseudo


@dataclass
class Batch:
    """One worker's part of a step on its device; labeled images stand first."""

    images: torch.Tensor  # uint8 [n, 3, H, W]
    labeled: torch.Tensor | None  # int64 [n_labeled]
    pseudo: torch.Tensor | None  # int64 [n_pseudo] or float32 [n_pseudo, C]
    rows: np.ndarray  # int64 [n], positions in the global batch
    total: int

    def __len__(self) -> int:
        return len(self.images)


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

    def __init__(self, config: TrainConfig, num_classes: int):
        self.config = config
        self.num_classes = num_classes

    def build(self, start: dict[str, torch.Tensor] | None = None) -> NetWithAverage:
        """A fresh model; `start` holds weights to begin with (warm start)."""
        torch.manual_seed(seed_of(self.config.seed, "init") % 2**63)
        net = build_net(self.config.net, self.num_classes, load=start is None)
        if start is not None:
            net.load_state_dict(start)
        freeze(net, self.config.freeze)
        return NetWithAverage(net, self.config.ema is not None)

    def views(self, batch: Batch, step: int) -> torch.Tensor:
        """The net's input: augmented, normalised, float32 [n, 3, H, W]."""
        draw = BatchDraw((self.config.seed, "views", step), batch.total, batch.rows)
        images = augment(batch.images, self.config.view, draw, self._noised(batch))
        return normalize(images, self.config.preprocess)

    def loss(self, model: NetWithAverage, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of this worker's part, and metrics as detached scalars."""
        noise = model.net.noise
        noise.draw = BatchDraw((self.config.seed, "noise", step), batch.total, batch.rows)
        noise.noised = self._noised(batch)
        logits = model.net(self.views(batch, step))
        noise.draw = noise.noised = None
        count = 0 if batch.labeled is None else len(batch.labeled)
        metrics: dict[str, torch.Tensor] = {}
        labeled = pseudo = None
        if batch.labeled is not None:
            labeled = cross_entropy(logits[:count], batch.labeled, self.config.label_smoothing)
            metrics["loss_labeled"] = labeled.detach()
            metrics["accuracy_labeled"] = (logits[:count].argmax(1) == batch.labeled).float().mean()
        if batch.pseudo is not None:
            pseudo = cross_entropy(logits[count:], batch.pseudo, self.config.label_smoothing)
            metrics["loss_pseudo"] = pseudo.detach()
        total: torch.Tensor | None
        if labeled is not None and pseudo is not None:
            total = combine(labeled, pseudo, self.config.ratio, self.config.combination)
        else:
            total = labeled if labeled is not None else pseudo
        assert total is not None
        return total, metrics

    @torch.no_grad()
    def after_step(self, model: NetWithAverage, step: int) -> None:
        """Move the average: decay min(ema, (1 + t) / (10 + t)), the ramp of the released code."""
        if model.average is None or self.config.ema is None:
            return
        decay = min(self.config.ema, (1 + step) / (10 + step))
        averaged, current = model.average.state_dict(), model.net.state_dict()
        floating = [key for key, value in current.items() if value.is_floating_point()]
        torch._foreach_lerp_([averaged[key] for key in floating], [current[key] for key in floating], 1 - decay)

    def _noised(self, batch: Batch) -> torch.Tensor | None:
        """Rows under noise, or None for all: the ablation leaves pseudo-labeled images alone."""
        if self.config.pseudo.noise or batch.pseudo is None:
            return None
        count = 0 if batch.labeled is None else len(batch.labeled)
        return torch.arange(len(batch), device=batch.images.device) < count

    def set_training(self, model: NetWithAverage) -> None:
        """Training mode; frozen batch norms keep their statistics."""
        model.net.train()
        for module in model.net.modules():
            if is_batch_norm(module) and not any(p.requires_grad for p in module.parameters(recurse=False)):
                module.eval()

    def describe(self) -> dict[str, Any]:
        """What is needed to rebuild the net for inference."""
        return {
            "net": self.config.net.model_dump(mode="json"),
            "preprocess": self.config.preprocess.model_dump(mode="json"),
            "num_classes": self.num_classes,
        }
