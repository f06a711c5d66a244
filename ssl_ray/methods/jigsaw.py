"""One training step of Jigsaw and Jigsaw++: which permutation shows a puzzle of nine tiles?

Implements: Jigsaw (Noroozi and Favaro, ECCV 2016; arXiv 1603.09246) and Jigsaw++ (Noroozi et al., CVPR 2018; arXiv 1805.00385,
section on the pretext), after the released code (`views/jigsaw.py`, `permutations.py`, `nets/puzzle.py`).

Differs from the code: initial weights and, if asked, batch norm (`net.norm`, `head.norm`), with which it learns in hundreds of
steps. The head of the VGG-16 pretext is not known: it is AlexNet's here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ssl_ray.methods.method import Batch
from ssl_ray.methods.pretraining import Pretrained, Pretraining
from ssl_ray.nets import build_puzzle
from ssl_ray.nets.puzzle import ContextFree
from ssl_ray.nets.weights import load_backbone
from ssl_ray.permutations import permutations
from ssl_ray.randomness import BatchDraw, seed_of
from ssl_ray.settings.pretraining import JigsawConfig
from ssl_ray.settings.views import Sizes
from ssl_ray.views.jigsaw import puzzles


class WithPermutations(Pretrained[ContextFree]):
    """The net, and the permutations that its outputs stand for: a checkpoint holds them."""

    def __init__(self, net: ContextFree, chosen: np.ndarray):
        super().__init__(net)
        self.register_buffer("permutations", torch.from_numpy(chosen))
        self.permutations: torch.Tensor


class Jigsaw(Pretraining):
    """The method over `JigsawConfig`."""

    config: JigsawConfig

    def __init__(self, config: JigsawConfig):
        super().__init__(config)
        self.sizes = Sizes(config.preprocess.size, config.view)

    def build(self, start: dict[str, torch.Tensor] | None = None) -> WithPermutations:
        config = self.config
        torch.manual_seed(seed_of(config.seed, "init") % 2**63)
        net = build_puzzle(config.net, config.head, tile=self.sizes.tile, count=config.permutations.count, load=start is None)
        if start is not None:
            load_backbone(net.backbone, start, "the checkpoint to begin with")
        self.fix(net)
        return WithPermutations(net, permutations(config.permutations))

    def loss(self, model: WithPermutations, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        draw = BatchDraw((self.config.seed, "puzzle", step), batch.total, batch.rows)
        partner = self.partners(batch, step)
        tiles, label = puzzles(batch.images, model.permutations, self.config.view, draw, partner)
        model.net.noise.draw = BatchDraw((self.config.seed, "noise", step), batch.total, batch.rows)
        features, logits = model.net(tiles)
        model.net.noise.draw = None
        loss = F.cross_entropy(logits.float(), label)
        self.seen = features.detach()
        return loss, {"puzzle_accuracy": (logits.detach().argmax(dim=1) == label).float().mean()}

    def partners(self, batch: Batch, step: int) -> np.ndarray:
        """For every image of this worker another one of its lane, int64 [n]: the same one on any number of workers."""
        each = self.config.batch // self.config.lanes
        if each < 2:
            return np.arange(len(batch))
        draw = BatchDraw((self.config.seed, "partner", step), batch.total, batch.rows)
        place = batch.rows % each
        other = (place + 1 + draw.integers(each - 1)) % each
        return np.arange(len(batch)) + other - place

    def after_step(self, model: WithPermutations, step: int) -> None:
        pass

    def set_training(self, model: WithPermutations) -> None:
        self.set_net_training(model.net)

    def describe(self) -> dict[str, Any]:
        head = self.config.head.model_dump(mode="json")
        count = self.config.permutations.count
        return super().describe() | {"puzzle": {"head": head, "tile": self.sizes.tile, "permutations": count}}
