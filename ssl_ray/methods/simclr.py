"""One training step of SimCLR: two views of every image, NT-Xent over all workers, an optional memory.

Implements: SimCLRv2 (Chen et al., *Big self-supervised models are strong semi-supervised learners*, NeurIPS 2020), step 1.

Differs from the paper: the form of the memory is our reading (`losses/contrastive.py`): keys are the moving average's
projections of the first view, pushed after the step. The moving average starts at the net and has the paper's constant decay.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from ssl_ray.config import Config
from ssl_ray.losses.contrastive import Reduction, nt_xent
from ssl_ray.methods.collapse import Watch
from ssl_ray.methods.memory import Queue
from ssl_ray.methods.method import Batch, LoopConfig, move_average, train_mode
from ssl_ray.nets import Encoder, NetConfig, build_encoder
from ssl_ray.nets.projection import ProjectionConfig
from ssl_ray.randomness import BatchDraw, seed_of
from ssl_ray.views.policy import normalize
from ssl_ray.views.simclr import SimCLRViewConfig, simclr_view


class MemoryConfig(Config):
    size: Annotated[int, Field(ge=1)] = 65536  # keys
    ema: Annotated[float, Field(gt=0, lt=1)] = 0.999  # decay of the net that makes them


class SimCLRConfig(LoopConfig):
    """Everything that a SimCLR pretraining computes."""

    net: NetConfig = NetConfig()
    projection: ProjectionConfig = ProjectionConfig()
    view: SimCLRViewConfig = SimCLRViewConfig()
    temperature: Annotated[float, Field(gt=0)] = 0.1
    reduction: Reduction = "sum"
    memory: MemoryConfig | None = None
    enlarge: bool = False  # images that are smaller than the crops may be enlarged

    def decoded_crops(self) -> tuple[float, int] | None:
        return (self.view.crop, 2) if self.view.decode_crops else None

    @model_validator(mode="after")
    def _queue_fits(self) -> SimCLRConfig:
        if self.memory is not None and self.memory.size % self.batch:
            raise ValueError(f"memory.size {self.memory.size} does not hold whole batches of {self.batch}; change one of them")
        if self.batch < 2:
            raise ValueError("a contrastive batch needs two images at least")
        return self


class WithMemory(nn.Module):
    """The encoder that learns; its moving average and the queue, where there is a memory."""

    def __init__(self, net: Encoder, config: SimCLRConfig):
        super().__init__()
        self.net = net
        self.watch = Watch()
        self.average: Encoder | None = None
        self.queue: Queue | None = None
        if config.memory is not None:
            self.average = copy.deepcopy(net).requires_grad_(False)  # in training mode: its norms see the batch, as MoCo's
            self.queue = Queue(config.memory.size, config.projection.dim)

    @property
    def used(self) -> Encoder:
        return self.net


class SimCLR:
    """The method over `SimCLRConfig`."""

    def __init__(self, config: SimCLRConfig):
        self.config = config
        self._keys: torch.Tensor | None = None
        self._features: torch.Tensor | None = None

    def build(self, start: dict[str, torch.Tensor] | None = None) -> WithMemory:
        """A fresh encoder; of `start` only the backbone is taken over."""
        torch.manual_seed(seed_of(self.config.seed, "init") % 2**63)
        net = build_encoder(self.config.net, self.config.projection, load=start is None)
        if start is not None:
            net.begin_with(start)
        return WithMemory(net, self.config)

    def views(self, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Two random views of every image, normalised, float32 [n, 3, S, S]."""
        whole = batch.images
        sources = whole.chunk(2) if len(whole) == 2 * len(batch) else (whole, whole)  # two crops, or one image twice
        size, made = self.config.preprocess.size, []
        for number, source in enumerate(sources):
            draw = BatchDraw((self.config.seed, "view", number, step), batch.total, batch.rows)
            made.append(simclr_view(source, self.config.view, draw, size))
        return normalize(made[0], self.config.preprocess), normalize(made[1], self.config.preprocess)

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
        loss, accuracy = nt_xent(a, b, self.config.temperature, held, self.config.reduction)
        self._features = features.detach()
        return loss, {"contrastive_accuracy": accuracy}

    def after_step(self, model: WithMemory, step: int) -> None:
        if model.queue is None or model.average is None or self.config.memory is None:
            return
        assert self._keys is not None
        model.queue.push(self._keys)
        move_average(model.average, model.net, self.config.memory.ema, buffers=False)

    def set_training(self, model: WithMemory) -> None:
        train_mode(model.net)
        if model.average is not None:
            model.average.train()

    def measure(self, model: WithMemory, step: int) -> dict[str, float]:
        return {} if self._features is None else model.watch(self._features, step)

    def describe(self) -> dict[str, Any]:
        return {
            "net": self.config.net.model_dump(mode="json"),
            "projection": self.config.projection.model_dump(mode="json"),
            "preprocess": self.config.preprocess.model_dump(mode="json"),
            "num_classes": 0,
            "classes": [],
            "method": "simclr",
        }
