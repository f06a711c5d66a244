"""One training step of SimCLR: two views of every image, NT-Xent over all workers, an optional memory.

Implements: SimCLRv2 (Chen et al., *Big self-supervised models are strong semi-supervised learners*, NeurIPS 2020), step 1.

Differs from the paper: the form of the memory is our reading (`losses/contrastive.py`): keys are the moving average's
projections of the first view, pushed after the step. The moving average starts at the net and has the paper's constant decay.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ssl_ray.losses.contrastive import nt_xent
from ssl_ray.methods.memory import Queue
from ssl_ray.methods.method import Batch, move_average
from ssl_ray.methods.pretraining import Contrastive, Pretrained, averaged
from ssl_ray.nets import Encoder
from ssl_ray.randomness import BatchDraw
from ssl_ray.settings.pretraining import SimCLRConfig


class WithMemory(Pretrained[Encoder]):
    """The encoder; its moving average and the queue, where there is a memory."""

    def __init__(self, net: Encoder, config: SimCLRConfig):
        super().__init__(net)
        self.average: Encoder | None = None
        self.queue: Queue | None = None
        if config.memory is not None:
            self.average = averaged(net)
            self.queue = Queue(config.memory.size, config.projection.dim)


class SimCLR(Contrastive):
    """The method over `SimCLRConfig`."""

    config: SimCLRConfig

    def __init__(self, config: SimCLRConfig):
        super().__init__(config)
        self._keys: torch.Tensor | None = None

    def build(self, start: dict[str, torch.Tensor] | None = None) -> WithMemory:
        return WithMemory(self.encoder(start), self.config)

    def loss(self, model: WithMemory, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        first, second = self.views(batch, step)
        both = np.concatenate([batch.rows, batch.rows + batch.total])
        model.net.noise.draw = BatchDraw((self.config.seed, "noise", step), 2 * batch.total, both)
        # One pass over both views, so that batch norm sees them together, as in the authors' code.
        features, projections = model.net(torch.cat([first, second]))
        a, b = projections.chunk(2)
        held = None
        if model.queue is not None and model.average is not None:
            held = model.queue.held()
            model.average.noise.draw = BatchDraw((self.config.seed, "noise of the average", step), batch.total, batch.rows)
            with torch.no_grad():
                self._keys = F.normalize(model.average(first)[1].float(), dim=1)
        loss, accuracy = nt_xent(a, b, self.config.temperature, held, self.config.reduction, self.config.lanes)
        self.seen = features.detach()
        return loss, {"contrastive_accuracy": accuracy}

    def after_step(self, model: WithMemory, step: int) -> None:
        if model.queue is None or model.average is None or self.config.memory is None:
            return
        assert self._keys is not None
        model.queue.push(self._keys, self.config.lanes)
        move_average(model.average, model.net, self.config.memory.ema, buffers=False)

    def set_training(self, model: WithMemory) -> None:
        self.set_net_training(model.net)
        if model.average is not None:
            model.average.train()
