"""Settings of trainings with labels, and what all trainings share."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ssl_ray.config import Config
from ssl_ray.errors import ResourceError
from ssl_ray.randomness import held_lanes
from ssl_ray.settings.nets import DIMENSIONS, SPINE_LEVELS, DetectorConfig, NetConfig, SegmenterConfig
from ssl_ray.settings.views import AugmentConfig, Preprocess, ViewConfig, check_pad
from ssl_ray.subset import SubsetConfig


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


Combination = Literal["algorithm1", "concat", "code", "alpha"]


class PseudoConfig(Config):
    teacher: Literal["stored", "live"] = "stored"  # labels written before, or the teacher on the very view the student gets
    targets: Literal["soft", "hard"] = "soft"
    temperature: Annotated[float, Field(gt=0)] = 1.0  # of soft targets
    student_temperature: Annotated[float, Field(gt=0)] = 1.0  # of the student on pseudo-labels; SimCLRv2: the teacher's
    noise: bool = True  # off: unlabeled images are neither augmented nor dropped out (the paper's noise ablation)


class TrainConfig(LabeledConfig):
    """Everything that one training run with labels computes: net, noise, loss, optimiser, length."""

    task: Literal["classification"] = "classification"
    net: NetConfig = NetConfig()
    mix: Literal["labeled", "joint", "pseudo"] = "labeled"
    ratio: Annotated[int, Field(ge=1)] = 1  # pseudo : labeled images in a step
    pseudo: PseudoConfig = PseudoConfig()
    combination: Combination = "algorithm1"
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5  # combination=alpha: the share of the pseudo-labels' loss
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    ema: Annotated[float, Field(gt=0, lt=1)] | None = 0.999
    freeze: Annotated[int, Field(ge=0)] = 0  # first layers that stay as they are
    fresh_head: bool = False  # of weights to begin with, leave the classifier out, as an evaluation must
    take: Annotated[int, Field(ge=0)] | None = None  # of those, only the first so many convolutions; the rest stays fresh

    @model_validator(mode="after")
    def _live(self) -> TrainConfig:
        if self.pseudo.teacher == "live" and self.pseudo.targets == "hard":
            raise ValueError("pseudo.teacher=live gives soft targets; set pseudo.targets=soft")
        return self

    def per_step(self) -> tuple[int, int]:
        """Labeled and pseudo-labeled images of a step."""
        labeled = self.batch if self.mix != "pseudo" else 0
        pseudo = self.batch * self.ratio if self.mix != "labeled" else 0
        return labeled, pseudo

    def images_per_step(self) -> int:
        return sum(self.per_step())


class BesideConfig(Config):
    """Classification of other images on the same backbone, in the same steps: the paper's joint training. The two losses are
    added; how they are weighed and how large the batches are is not verified."""

    batch: Annotated[int, Field(ge=1)] = 32  # images a step, over all workers
    weight: Annotated[float, Field(gt=0)] = 1.0
    preprocess: Preprocess = Preprocess()
    view: ViewConfig = ViewConfig()
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _crop(self) -> BesideConfig:
        if self.view.crop == "resized":  # it is drawn while decoding, which this stream does not do
            raise ValueError("beside.view.crop is none or pad, not resized")
        check_pad(self.view, self.preprocess.size)
        return self


class SceneConfig(LoopConfig):
    """Everything that one training run of a detector or segmenter computes; `task` says which."""

    net: NetConfig = NetConfig()
    subset: SubsetConfig | None = None  # of the labeled images; None: all
    augment: AugmentConfig = AugmentConfig()
    mix: Literal["labeled", "joint", "pseudo"] = "labeled"
    ratio: Annotated[int, Field(ge=1)] = 1  # pseudo : labeled images in a step
    combination: Combination | Literal["normalised"] = "normalised"
    alpha: Annotated[float, Field(ge=0)] = 1.0  # the weight of the pseudo-labels' loss
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99  # of the running averages of both losses (not verified)
    ema: Annotated[float, Field(gt=0, lt=1)] | None = 0.999
    beside: BesideConfig | None = None
    freeze: Annotated[int, Field(ge=0)] = 0  # first layers that stay as they are
    fresh_head: bool = False  # of weights to begin with, take the backbone alone

    @model_validator(mode="after")
    def _fits(self) -> SceneConfig:
        if self.preprocess.crop != "fit":
            raise ValueError(f"boxes and masks need preprocess.crop=fit, which keeps places apart, not {self.preprocess.crop}")
        multiple = 2 ** SPINE_LEVELS[-1]
        if self.net.name.startswith("spinenet:") and self.preprocess.size % multiple:
            raise ValueError(
                f"the maps of spinenet meet in images whose side is a multiple of {multiple}; set preprocess.size to one, not "
                f"{self.preprocess.size}"
            )
        if self.combination == "alpha" and self.alpha > 1:
            raise ValueError(f"combination=alpha takes an alpha of 0 to 1, not {self.alpha:g}")
        if self.beside is not None and self.beside.batch % self.lanes:
            raise ValueError(f"beside.batch {self.beside.batch} does not divide into {self.lanes} lanes; change one of them")
        return self

    def per_step(self) -> tuple[int, int]:
        """Labeled and pseudo-labeled images of a step."""
        labeled = self.batch if self.mix != "pseudo" else 0
        pseudo = self.batch * self.ratio if self.mix != "labeled" else 0
        return labeled, pseudo

    def images_per_step(self) -> int:
        return sum(self.per_step())


class DetectionConfig(SceneConfig):
    task: Literal["detection"] = "detection"
    head: DetectorConfig = DetectorConfig()


class SegmentationConfig(SceneConfig):
    task: Literal["segmentation"] = "segmentation"
    head: SegmenterConfig = SegmenterConfig()


class LayerProbeConfig(LabeledConfig):
    """What is probed, and how its classifiers learn. The net is the judged checkpoint's; AlexNet may have another stride."""

    net: NetConfig = NetConfig()
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = ("conv1", "conv2", "conv3", "conv4", "conv5")
    dimensions: Annotated[int, Field(ge=1)] = DIMENSIONS


Positive = Annotated[float, Field(gt=0)]


class LinearConfig(Config):
    """HPT's protocol for separability (steps, not epochs; a grid of rates; validation chooses), on cached features."""

    rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.3, 3.0, 30.0)
    steps: Annotated[int, Field(ge=1)] = 2000
    batch: Annotated[int, Field(ge=1)] = 512
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    looks: Annotated[int, Field(ge=1, le=10_000)] = 10  # validations in the second half of the steps; the best one is kept
    standardize: bool = True  # features to mean 0 and deviation 1, from the training images
