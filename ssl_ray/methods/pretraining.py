"""What all pretraining without labels shares: settings, the fresh encoder, two views, and the look at its health."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from ssl_ray.errors import ConfigError
from ssl_ray.methods.collapse import Watch
from ssl_ray.methods.method import Batch, train_mode
from ssl_ray.nets import Encoder, build_encoder
from ssl_ray.nets.batchnorm import is_batch_norm
from ssl_ray.nets.puzzle import ContextFree
from ssl_ray.randomness import BatchDraw, seed_of
from ssl_ray.settings.pretraining import ContrastiveConfig, PretrainConfig
from ssl_ray.views.policy import normalize
from ssl_ray.views.simclr import simclr_view

NetT = TypeVar("NetT", Encoder, ContextFree)


class Pretrained(nn.Module, Generic[NetT]):
    """The net that learns, and the watch over it; methods add averages and queues."""

    def __init__(self, net: NetT):
        super().__init__()
        self.net: NetT = net
        self.watch = Watch()

    @property
    def used(self) -> NetT:
        return self.net


def averaged(net: Encoder) -> Encoder:
    """A copy that only follows. It stays in training mode: its norms see the batch, as in MoCo's code."""
    return copy.deepcopy(net).requires_grad_(False)


class Pretraining:
    """The parts of a `Method` that do not depend on the loss."""

    config: PretrainConfig

    def __init__(self, config: PretrainConfig):
        self.config = config
        self.seen: torch.Tensor | None = None
        """Features of the last step, for the watch."""

    def fix(self, net: Encoder | ContextFree) -> None:
        """Fix what of the backbone does not learn (`trains`).

        Raises:
            ConfigError: batch norms alone are to learn, and there are none.
        """
        if self.config.trains == "all":
            return
        if not any(is_batch_norm(module) for module in net.backbone.modules()):
            raise ConfigError(
                f"trains={self.config.trains} lets batch norms alone learn, and {self.config.net.name} has none; leave the "
                "strategies base, hpt-bn and hpt-bn-affine out"
            )
        fix_backbone(net, affine=self.config.trains == "norm-affine")

    def set_net_training(self, net: nn.Module) -> None:
        """Training mode. Where the backbone's parameters are fixed, its norms go on learning their statistics."""
        if self.config.trains == "all":
            train_mode(net)
        else:
            net.train()

    def measure(self, model: Pretrained[Any], step: int) -> dict[str, float]:
        found: dict[str, float] = {} if self.seen is None else model.watch(self.seen, step, self.config.lanes)
        return found

    def describe(self) -> dict[str, Any]:
        return {
            "net": self.config.net.model_dump(mode="json"),
            "preprocess": self.config.preprocess.model_dump(mode="json"),
            "num_classes": 0,
            "classes": [],
            "method": self.config.method,
        }


class Contrastive(Pretraining):
    """The parts that methods share which compare two views of an image."""

    config: ContrastiveConfig

    def encoder(self, start: dict[str, torch.Tensor] | None) -> Encoder:
        """A fresh encoder; of `start` only the backbone is taken over, never a head."""
        torch.manual_seed(seed_of(self.config.seed, "init") % 2**63)
        net = build_encoder(self.config.net, self.config.projection, load=start is None)
        if start is not None:
            net.begin_with(start)
        self.fix(net)
        return net

    def views(self, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Two random views of every image, normalised, float32 [n, 3, S, S]."""
        whole = batch.images
        sources = whole.chunk(2) if len(whole) == 2 * len(batch) else (whole, whole)  # two crops, or one image twice
        size, made = self.config.preprocess.size, []
        for number, source in enumerate(sources):
            draw = BatchDraw((self.config.seed, "view", number, step), batch.total, batch.rows)
            made.append(simclr_view(source, self.config.view, draw, size))
        return normalize(made[0], self.config.preprocess), normalize(made[1], self.config.preprocess)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"projection": self.config.projection.model_dump(mode="json")}


def fix_backbone(net: Encoder | ContextFree, affine: bool) -> None:
    """Let no parameter of the backbone learn but, if asked, the scale and shift of its batch norms.

    HPT-BN (Reed et al., WACV 2022): digests of the paper say that the mean and variance of batch norms are trained; the
    authors' code fixes all convolutions and all scales and shifts and leaves norms in training mode, so that running statistics
    alone change. `affine=False` is that. That scale and shift learn as well, neither says: `affine=True` is an option of ours.
    """
    for module in net.backbone.modules():
        learns = affine and is_batch_norm(module)
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(learns)
