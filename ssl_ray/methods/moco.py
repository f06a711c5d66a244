"""One training step of MoCo v2: a query against its key, made by a slow copy of the net, and a queue of older keys.

Implements: MoCo v2 (Chen, Fan, Girshick, He, *Improved baselines with momentum contrastive learning*, arXiv 2003.04297), in
the order of the authors' code (facebookresearch/moco): encode the query; move the key encoder; encode the shuffled keys
without gradient; put them back in order; loss; enqueue. `symmetric` is the form of the authors' CIFAR demo: both views are
queries once, the two losses are added, and both keys go into the queue.

Batch norm: the authors normalise on each of 8 GPUs by itself and shuffle the keys over the GPUs, so that a query and its key
do not share statistics. Here `batch_norm` says over how many images a norm looks (the paper's 256 / 8 = 32), on any number of
workers; the keys are permuted over the whole batch. One worker, two workers, GPU or CPU: the same numbers. With
batch_norm="sync" all images are normalised together and nothing is shuffled.

Differs from the code: the rate follows a cosine by step, not by epoch; views are those of `views/simclr.py` with MoCo's
strengths, where MoCo's pipeline is torchvision's (contrast, saturation, interpolation and blur are computed otherwise).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ssl_ray.distributed import gather
from ssl_ray.losses.contrastive import info_nce
from ssl_ray.methods.memory import Queue
from ssl_ray.methods.method import Batch, move_average
from ssl_ray.methods.pretraining import Contrastive, Pretrained, averaged
from ssl_ray.nets import Encoder
from ssl_ray.nets.batchnorm import split
from ssl_ray.randomness import BatchDraw, generator, seed_of
from ssl_ray.settings.pretraining import MoCoConfig


class WithKeys(Pretrained[Encoder]):
    """The query encoder, the key encoder that follows it, and the queue."""

    def __init__(self, net: Encoder, config: MoCoConfig):
        super().__init__(net)
        self.keys = averaged(net)
        self.queue = Queue(config.queue, config.projection.dim, seed=seed_of(config.seed, "queue"))


class MoCo(Contrastive):
    """The method over `MoCoConfig`."""

    config: MoCoConfig

    def __init__(self, config: MoCoConfig):
        super().__init__(config)
        self._new: torch.Tensor | None = None

    def build(self, start: dict[str, torch.Tensor] | None = None) -> WithKeys:
        net = self.encoder(start)
        if self.config.batch_norm != "sync":
            split(net, self.config.batch_norm)
        return WithKeys(net, self.config)

    def loss(self, model: WithKeys, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        views = self.views(batch, step)
        pairs = [(0, 1), (1, 0)] if self.config.symmetric else [(0, 1)]
        queries, features = [], []
        for asked, _ in pairs:
            model.net.noise.draw = BatchDraw((self.config.seed, "noise", asked, step), batch.total, batch.rows)
            seen, query = model.net(views[asked])
            queries.append(query)
            features.append(seen.detach())
        move_average(model.keys, model.net, self.config.ema, buffers=False)
        everyone = [self._keys(model, views[answer], batch, step, answer) for _, answer in pairs]
        own = torch.from_numpy(batch.rows).to(views[0].device)
        found = [
            info_nce(query, keys[own], model.queue.held(), self.config.temperature)
            for query, keys in zip(queries, everyone, strict=True)
        ]
        self._new = torch.cat(everyone)
        self.seen = features[0]
        total = torch.stack([loss for loss, _ in found]).sum()
        return total, {"contrastive_accuracy": torch.stack([share for _, share in found]).mean()}

    @torch.no_grad()
    def _keys(self, model: WithKeys, view: torch.Tensor, batch: Batch, step: int, number: int) -> torch.Tensor:
        """The normalised keys of all workers in the order of the global batch, float32 [total, dim]."""
        model.keys.noise.draw = BatchDraw((self.config.seed, "noise of the keys", number, step), batch.total, batch.rows)
        if self.config.batch_norm == "sync":
            return gather(self._encoded(model, view), self.config.lanes)
        order = generator(self.config.seed, "shuffle", number, step).permutation(batch.total)
        mine = order[batch.rows]  # which images this worker encodes
        shuffled = gather(view, self.config.lanes)[torch.from_numpy(mine).to(view.device)]
        back = torch.from_numpy(np.argsort(order)).to(view.device)
        encoded = self._encoded(model, shuffled.contiguous(memory_format=torch.channels_last))
        return gather(encoded, self.config.lanes)[back]

    @staticmethod
    def _encoded(model: WithKeys, view: torch.Tensor) -> torch.Tensor:
        return F.normalize(model.keys(view)[1].float(), dim=1)

    def after_step(self, model: WithKeys, step: int) -> None:
        assert self._new is not None
        model.queue.put(self._new)

    def set_training(self, model: WithKeys) -> None:
        self.set_net_training(model.net)
        model.keys.train()
