"""One training step of linear probes on several layers of a frozen net, all in one pass.

Implements: the linear evaluation of every convolution (Zhang et al., as Noroozi et al., CVPR 2018, report it for conv1 to
conv5 of AlexNet): `nets/probed.py`. The losses of the layers are added; each classifier sees its own alone.
"""

from __future__ import annotations

from typing import Any

import torch

from ssl_ray.methods.method import Batch
from ssl_ray.nets import build_probed
from ssl_ray.nets.probed import LayerProbes, fitting_grids, losses_of
from ssl_ray.nets.weights import load_backbone
from ssl_ray.randomness import BatchDraw, seed_of
from ssl_ray.settings.nets import LayerConfig
from ssl_ray.settings.training import LayerProbeConfig
from ssl_ray.views.policy import augment, normalize


class Probed(torch.nn.Module):
    def __init__(self, net: LayerProbes):
        super().__init__()
        self.net = net

    @property
    def used(self) -> LayerProbes:
        return self.net


class LayerProbe:
    """The method over `LayerProbeConfig`."""

    def __init__(self, config: LayerProbeConfig, num_classes: int):
        self.config, self.num_classes = config, num_classes
        self._grids: dict[str, LayerConfig] = {}

    def build(self, start: dict[str, torch.Tensor] | None = None) -> Probed:
        """`start` holds the weights to judge; without it the net is random, which is the row to compare with."""
        config = self.config
        torch.manual_seed(seed_of(config.seed, "init") % 2**63)
        bare = build_probed(config.net, {"layers": {}, "size": config.preprocess.size}, self.num_classes)
        self._grids = fitting_grids(bare.backbone, list(config.layers), config.preprocess.size, config.dimensions)
        if start is not None:
            load_backbone(bare.backbone, start, "the checkpoint to judge")
        return Probed(LayerProbes(bare.backbone, self._grids, config.preprocess.size, self.num_classes))

    def loss(self, model: Probed, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        assert batch.labeled is not None
        draw = BatchDraw((self.config.seed, "views", step), batch.total, batch.rows)
        views = normalize(augment(batch.images, self.config.view, draw), self.config.preprocess)
        losses, right = losses_of(model.net(views), batch.labeled, self.num_classes)
        return losses.sum(), {f"accuracy_{name}": value for name, value in zip(self.config.layers, right, strict=True)}

    def after_step(self, model: Probed, step: int) -> None:
        pass

    def set_training(self, model: Probed) -> None:
        model.net.train()

    def measure(self, model: Probed, step: int) -> dict[str, float]:
        return {}

    def describe(self) -> dict[str, Any]:
        """No classes: what the net gives are logits of every layer, side by side."""
        layers = {name: layer.model_dump(mode="json") for name, layer in self._grids.items()}
        return {
            "net": self.config.net.model_dump(mode="json"),
            "preprocess": self.config.preprocess.model_dump(mode="json"),
            "num_classes": self.num_classes,
            "classes": [],
            "probed": {"layers": layers, "size": self.config.preprocess.size},
        }
