"""What a training method answers, and the settings that every training run has. There is one loop for all methods."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from ssl_ray.config import Config
from ssl_ray.distributed import held_lanes
from ssl_ray.errors import ResourceError
from ssl_ray.nets.batchnorm import is_batch_norm
from ssl_ray.subset import SubsetConfig
from ssl_ray.views.decode import Preprocess
from ssl_ray.views.policy import ViewConfig, check_pad


class OptimConfig(Config):
    name: Literal["sgd", "adamw", "rmsprop", "lars"] = "sgd"  # rmsprop: TensorFlow's, from timm; lars: SimCLR's
    lr: Annotated[float, Field(gt=0)] = 0.1
    scaling: Literal["none", "sqrt", "linear"] = "none"  # the rate is lr, lr * sqrt(images a step), or lr * images / 256
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True  # sgd
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4  # not on norms and biases
    decay_all: bool = False  # on them too, as MoCo does
    head_factor: Annotated[float, Field(gt=0)] = 1.0  # the classifier's rate, times the others'
    clip_norm: Annotated[float, Field(gt=0)] | None = None

    def peak(self, images: int) -> float:
        """The learning rate at its highest, for so many images a step over all workers."""
        return self.lr * {"none": 1.0, "sqrt": math.sqrt(images), "linear": images / 256}[self.scaling]


class ScheduleConfig(Config):
    """Lengths are in steps, or in epochs of the labeled images (of all images where no label is used)."""

    unit: Literal["steps", "epochs"] = "steps"
    length: Annotated[float, Field(gt=0)] = 300
    warmup: Annotated[float, Field(ge=0)] = 0
    decay: Literal["cosine", "staircase", "constant"] = "cosine"
    decay_every: Annotated[float, Field(gt=0)] = 2.4  # staircase
    decay_rate: Annotated[float, Field(gt=0, le=1)] = 0.97  # staircase


class LoopConfig(Config):
    """What any training run computes, whatever its method."""

    preprocess: Preprocess = Preprocess()
    batch: Annotated[int, Field(ge=1)] = 64  # images a step, over all workers; labeled ones where there are labels
    lanes: Annotated[int, Field(ge=1, le=1024)] = 4  # parts of the batch that never straddle workers
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    # Over the global batch, or over this many images of one worker.
    batch_norm: Literal["sync"] | Annotated[int, Field(ge=1)] = "sync"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 autocast where the hardware has it
    seed: int = 0

    @model_validator(mode="after")
    def _lanes_divide(self) -> LoopConfig:
        if self.batch % self.lanes:
            raise ValueError(f"batch {self.batch} does not divide into {self.lanes} lanes; change batch or lanes")
        return self

    def images_per_step(self) -> int:
        """Images that enter a step, over all workers."""
        return self.batch

    def splits_batch_norm(self) -> bool:
        """Whether the method itself parts a worker's images into groups of `batch_norm`."""
        return False

    def check_workers(self, workers: int) -> None:
        """Refuse a number of workers that does not fit the settings.

        Raises:
            ResourceError: they are more than the lanes, or give batch norms other images.
        """
        if workers > self.lanes:
            raise ResourceError(
                f"{workers} training workers are more than the {self.lanes} parts of the batch (lanes); take at most "
                f"{self.lanes}"
            )
        if self.batch_norm != "sync" and not self._keeps_groups(workers):
            allowed = " or ".join(str(count) for count in range(1, self.lanes + 1) if self._keeps_groups(count))
            raise ResourceError(
                f"batch_norm={self.batch_norm} asks for statistics over {self.batch_norm} images of one worker, which "
                f"{workers} workers do not give; take {f'{allowed} workers, or ' if allowed else ''}batch_norm=sync"
            )

    def _keeps_groups(self, workers: int) -> bool:
        """Return whether batch norms see `batch_norm` images each with this number of workers."""
        lane = self.images_per_step() // self.lanes
        images = {lane * len(held_lanes(self.lanes, rank, workers)) for rank in range(workers)}
        if self.splits_batch_norm():
            return all(count % int(self.batch_norm) == 0 for count in images)
        return images == {self.batch_norm}

    def most_images(self, workers: int) -> int:
        """Return the number of images in a step of the worker that holds most."""
        return self.images_per_step() // self.lanes * -(-self.lanes // workers)

    def decoded_crops(self) -> tuple[float, int] | None:
        """Random crops that are drawn while decoding: least share of the area, and how many of an image."""
        return None


class LabeledConfig(LoopConfig):
    """What any training with labels computes."""

    subset: SubsetConfig | None = None  # of the labels; None: all
    view: ViewConfig = ViewConfig()

    @model_validator(mode="after")
    def _pads(self) -> LabeledConfig:
        check_pad(self.view, self.preprocess.size)
        return self

    def decoded_crops(self) -> tuple[float, int] | None:
        return (0.08, 1) if self.view.crop == "resized" else None

    def per_step(self) -> tuple[int, int]:
        """Labeled and pseudo-labeled images of a step."""
        return self.batch, 0


@dataclass
class Batch:
    """One worker's part of a step on its device; labeled images stand first."""

    images: torch.Tensor  # uint8 [n, 3, H, W]; two crops of every image, the first ones first, where decoding draws them
    labeled: Any  # int64 [n_labeled], or what stands in the images, by name (methods.scenes.Found); None without labels
    pseudo: Any  # int64 [n_pseudo], float32 [n_pseudo, C], or as above
    rows: np.ndarray  # int64 [n], positions in the global batch
    total: int
    beside: Batch | None = None  # images of another set in the same step, with labels

    def __len__(self) -> int:
        return len(self.rows)


class Trained(Protocol):
    """A model on its way. Its state dict holds all state of the method: averages, queues and their pointers."""

    net: nn.Module

    @property
    def used(self) -> nn.Module:
        """What the checkpoint keeps: the weights to label, evaluate and fine-tune with."""
        ...


class Method(Protocol):
    """What one training step means. `Loop` asks nothing else."""

    @property
    def config(self) -> LoopConfig: ...

    def build(self, start: dict[str, torch.Tensor] | None = None) -> Any:
        """A fresh `Trained` module; `start` holds weights to begin with."""

    def loss(self, model: Any, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of this worker's part, and metrics as detached scalars."""

    def after_step(self, model: Any, step: int) -> None:
        """What follows the optimiser's step: averages and queues move."""

    def set_training(self, model: Any) -> None:
        """Training mode, with what stays as it is left out."""

    def measure(self, model: Any, step: int) -> dict[str, float]:
        """What is worth a look now and then; raises HealthError where going on is pointless."""

    def describe(self) -> dict[str, Any]:
        """What is needed to rebuild the net for inference."""


def train_mode(net: nn.Module) -> None:
    """Training mode; batch norms whose parameters are all fixed keep their statistics."""
    net.train()
    for module in net.modules():
        if is_batch_norm(module) and not any(p.requires_grad for p in module.parameters(recurse=False)):
            module.eval()


@torch.no_grad()
def move_average(average: nn.Module, net: nn.Module, decay: float, *, buffers: bool = True) -> None:
    """average <- decay * average + (1 - decay) * net, over parameters and, if asked, batch-norm statistics."""
    averaged, current = (
        {name: value for name, value in _tensors(module, buffers) if value.is_floating_point()} for module in (average, net)
    )
    torch._foreach_lerp_([averaged[name] for name in current], list(current.values()), 1 - decay)


def _tensors(module: nn.Module, buffers: bool) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    if buffers:
        yield from module.named_buffers()
