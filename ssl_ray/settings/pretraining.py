"""Settings of trainings without labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ssl_ray.config import Config
from ssl_ray.permutations import PermutationsConfig
from ssl_ray.settings.nets import NetConfig, ProjectionConfig, PuzzleHeadConfig
from ssl_ray.settings.training import LoopConfig, OptimConfig
from ssl_ray.settings.views import JigsawViewConfig, SimCLRViewConfig, Sizes

Trains = Literal["all", "norm-statistics", "norm-affine"]
"""What of the backbone learns; the head always does. "norm-statistics": no parameter, only the running mean and variance of
its batch norms; "norm-affine": their scale and shift as well."""


class PretrainConfig(LoopConfig):
    """Everything that any pretraining computes; each method adds its own."""

    method: str  # each has one value, by which a phase's settings are told apart
    net: NetConfig = NetConfig()
    trains: Trains = "all"
    share: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the images; the smaller share is part of the larger
    share_seed: int = 0  # which ones
    snapshots: tuple[Annotated[int, Field(ge=1)], ...] = ()  # steps after which the encoder is kept, besides the last one
    enlarge: bool = False  # images that are smaller than the crops may be enlarged

    @field_validator("snapshots")
    @classmethod
    def _in_order(cls, snapshots: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(snapshots)))

    def held_keys(self) -> int:
        """Keys of a queue or memory."""
        return 0


class ContrastiveConfig(PretrainConfig):
    """What methods share that compare two views of an image."""

    projection: ProjectionConfig = ProjectionConfig()
    view: SimCLRViewConfig = SimCLRViewConfig()
    temperature: Annotated[float, Field(gt=0)] = 0.1

    @model_validator(mode="after")
    def _two_images(self) -> ContrastiveConfig:
        if self.batch < 2:
            raise ValueError("a contrastive batch needs two images at least")
        return self

    def decoded_crops(self) -> tuple[float, int] | None:
        return (self.view.crop, 2) if self.view.decode_crops else None


Reduction = Literal["sum", "mean"]


class MemoryConfig(Config):
    size: Annotated[int, Field(ge=1)] = 65536  # keys
    ema: Annotated[float, Field(gt=0, lt=1)] = 0.999  # decay of the net that makes them


class SimCLRConfig(ContrastiveConfig):
    """Everything that a SimCLR pretraining computes."""

    method: Literal["simclr"] = "simclr"
    reduction: Reduction = "sum"
    memory: MemoryConfig | None = None

    def held_keys(self) -> int:
        return self.memory.size if self.memory is not None else 0

    @model_validator(mode="after")
    def _queue_fits(self) -> SimCLRConfig:
        if self.memory is not None and self.memory.size % self.batch:
            raise ValueError(f"memory.size {self.memory.size} does not hold whole batches of {self.batch}; change one of them")
        return self


class MoCoConfig(ContrastiveConfig):
    """Everything that a MoCo v2 pretraining computes; the defaults are the authors' for ImageNet."""

    method: Literal["moco"] = "moco"
    projection: ProjectionConfig = ProjectionConfig(layers=2, dim=128, norm=False)
    view: SimCLRViewConfig = SimCLRViewConfig(crop=0.2, strength=0.5)  # jitter 0.4, 0.4, 0.4, hue 0.1
    temperature: Annotated[float, Field(gt=0)] = 0.2
    queue: Annotated[int, Field(ge=1)] = 65536  # keys
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999  # of the key encoder
    symmetric: bool = False
    batch: Annotated[int, Field(ge=1)] = 256
    lanes: Annotated[int, Field(ge=1, le=1024)] = 8
    batch_norm: Literal["sync"] | Annotated[int, Field(ge=2)] = 32  # images that a norm looks at
    optim: OptimConfig = OptimConfig(lr=0.03, nesterov=False, weight_decay=1e-4, decay_all=True)

    def held_keys(self) -> int:
        return self.queue

    def keys_per_step(self) -> int:
        return 2 * self.batch if self.symmetric else self.batch

    @model_validator(mode="after")
    def _queue_fits(self) -> MoCoConfig:
        if self.batch_norm != "sync" and self.batch % self.batch_norm:
            raise ValueError(
                f"batch={self.batch} does not part into groups of batch_norm={self.batch_norm} images; change one of them, "
                "or take batch_norm=sync"
            )
        if self.queue % self.keys_per_step():
            raise ValueError(
                f"queue={self.queue} does not hold whole steps of {self.keys_per_step()} keys; take a multiple of them, or "
                "change batch"
            )
        return self

    def splits_batch_norm(self) -> bool:
        return True


class JigsawConfig(PretrainConfig):
    """Everything that a Jigsaw pretraining computes. The defaults are Jigsaw++'s (`recipes/knowledge_transfer.py` for
    Jigsaw's)."""

    method: Literal["jigsaw"] = "jigsaw"
    permutations: PermutationsConfig = PermutationsConfig()
    head: PuzzleHeadConfig = PuzzleHeadConfig()
    view: JigsawViewConfig = JigsawViewConfig()

    @model_validator(mode="after")
    def _fits(self) -> JigsawConfig:
        Sizes(self.preprocess.size, self.view)
        if self.view.occluded and self.batch // self.lanes < 2:
            raise ValueError(
                f"occluding tiles come from another image of the same lane, and {self.lanes} lanes of batch {self.batch} "
                f"have one "
                "image each; lower lanes, or set view.occluded=0"
            )
        return self


PRETRAINING = ("train", "unlabeled")
"""Splits whose images are pretrained on, without their labels; never validation or test."""


PRETEXT_METRICS = ("contrastive_accuracy", "puzzle_accuracy")
"""How often a net is right in its own task; each method knows one of them."""
