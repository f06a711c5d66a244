"""Recipes of knowledge transfer by clusters: `paper()` as far as it is known, and what fits two cores.

Source: Noroozi, Vinjimoor, Favaro, Pirsiavash, *Boosting self-supervised learning via knowledge transfer*, CVPR 2018 (arXiv
1805.00385), and the released code of Jigsaw and Jigsaw++. Most of the method's settings are not known to us (which layer is
clustered, the head of the VGG-16 pretext, k-means, the student's schedule, HOG): they are marked "ours".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ssl_ray.config import Config, override
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.recipes import find
from ssl_ray.selection import SelectionConfig
from ssl_ray.settings.nets import HOGConfig, LayerConfig, NetConfig, PuzzleHeadConfig
from ssl_ray.settings.pretraining import JigsawConfig, MoCoConfig, SimCLRConfig
from ssl_ray.settings.training import LayerProbeConfig, OptimConfig, PseudoConfig, ScheduleConfig, TrainConfig
from ssl_ray.settings.views import Preprocess, ViewConfig
from ssl_ray.stages.cluster import ClusterConfig
from ssl_ray.stages.describe import DescribeConfig
from ssl_ray.stages.label import LabelConfig

Pretext = Annotated[JigsawConfig | MoCoConfig | SimCLRConfig, Field(discriminator="method")]
"""The settings of a pretext, by any method of ours without labels."""

HOG = "hog"

JIGSAW_2016 = {
    "permutations.count": 1000,
    "permutations.rule": "mean",
    "view.grey": 0.3,
    "view.occluded": 0,
}
"""From Jigsaw++ to Jigsaw (Noroozi and Favaro, ECCV 2016, after reading notes of the paper; its first released code has neither
grey images nor shifted channels): 1,000 permutations by the greedy rule, less grey, no strangers."""


class TeacherConfig(Config):
    """A net that learns a pretext, and which of its layers is clustered."""

    pretext: Pretext
    layer: LayerConfig = LayerConfig()


class ArmConfig(Config):
    """A row of the comparison: where knowledge comes from, and how it reaches the small net."""

    teacher: str  # a name in `teachers`, or hog
    clusters: Annotated[int, Field(ge=2)] | None = None  # k; None: no clusters, the teacher's own weights are judged
    cluster_on: Literal["images", "other"] = "images"
    label_on: Literal["images", "other"] = "images"


class FreshLayersConfig(Config):
    """The non-linear probe: the first layers frozen, the rest of the net trained anew with labels."""

    train: TrainConfig
    layers: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 2, 3, 4, 5)  # convolutions that stay


class KnowledgeTransferRecipe(Config):
    """Teachers, clusters, students, and how all of them are judged on the labeled images."""

    images: ImagesConfig = ImagesConfig()  # the unlabeled ones are clustered; with needs_unlabeled=false, the labeled ones
    other: ImagesConfig | None = None  # a second set of unlabeled images, to cluster or to label
    teachers: dict[str, TeacherConfig]
    hog: DescribeConfig = DescribeConfig()
    cluster: ClusterConfig = ClusterConfig()  # k is the arm's
    labeler: LabelConfig = LabelConfig(top_k=5)
    selection: SelectionConfig = SelectionConfig(min_confidence=0.0, balance=False, allow_empty_classes=True)  # every image
    student: TrainConfig
    arms: dict[str, ArmConfig]
    probe: LayerProbeConfig | None = LayerProbeConfig()
    fresh: FreshLayersConfig | None = None
    finetune: TrainConfig | None = None  # transfer: the student's convolutions, everything else fresh
    random: bool = True  # judge random weights as well
    seed: int = 0

    @field_validator("other", mode="before")
    @classmethod
    def _no_sample(cls, other: Any) -> Any:
        """Other images have no labels unless somebody says so."""
        return {"labeled": None, **other} if isinstance(other, dict) else other

    @field_validator("teachers", "arms")
    @classmethod
    def _names(cls, named: dict[str, Config]) -> dict[str, Config]:
        for name in named:
            if not re.fullmatch(r"[a-z0-9][a-z0-9_.+-]*", name) or name == "random":
                raise ValueError(f"{name!r} becomes a folder; take small letters, digits and -_.+ (and not: random)")
        return named

    @model_validator(mode="after")
    def _consistent(self) -> KnowledgeTransferRecipe:
        if not self.arms:
            raise ValueError("there is no arm; give arms.NAME.teacher")
        for name, arm in self.arms.items():
            if arm.teacher != HOG and arm.teacher not in self.teachers:
                known = ", ".join([*self.teachers, HOG])
                raise ValueError(f"arms.{name}.teacher={arm.teacher} is unknown; take one of {known}")
            if "other" in (arm.cluster_on, arm.label_on) and self.other is None:
                raise ValueError(f"arms.{name} wants other images, and there are none; give other.unlabeled")
            if arm.clusters is None and not self._is_student(arm.teacher):
                raise ValueError(
                    f"arms.{name} judges the weights of {arm.teacher} themselves, which are not the student's net "
                    f"{self.student.net.name}; set arms.{name}.clusters"
                )
        if self.student.mix != "pseudo":
            raise ValueError("student.mix must be pseudo: a student learns clusters alone")
        for judge in (self.finetune, self.fresh.train if self.fresh is not None else None):
            if judge is not None and judge.mix != "labeled":
                raise ValueError("finetune.mix and fresh.train.mix must be labeled: they judge what was learned without labels")
        return self

    def _is_student(self, teacher: str) -> bool:
        from ssl_ray.stages.train import SHAPE

        if teacher == HOG:
            return False
        net, own = self.teachers[teacher].pretext.net, self.student.net
        keys = [key for key in SHAPE if (key, net.name) != ("stem_stride", "alexnet")]
        return all(getattr(net, key) == getattr(own, key) for key in keys)


def paper() -> KnowledgeTransferRecipe:
    """ImageNet: Jigsaw++ with AlexNet and with VGG-16, 2,000 clusters, an AlexNet from scratch; as far as it is known.

    Evidence for its numbers: none of ours; it takes a cluster of GPUs. What it compares is table 1 of the paper: direct
    transfer, clusters with the same architecture, clusters from the deeper teacher.
    """
    alexnet = NetConfig(name="alexnet", stem_stride=2, norm="lrn")
    pixels = Preprocess(size=255, crop="center", crop_share=255 / 256)
    optim = OptimConfig(lr=0.01, nesterov=False, momentum=0.9, weight_decay=5e-4)  # released code of Jigsaw
    small = JigsawConfig(
        net=alexnet,
        preprocess=pixels,
        head=PuzzleHeadConfig(tile=1024, hidden=4096, dropout=0.5, layer=LayerConfig(name="pool5", grid=None)),
        batch=256,
        lanes=8,
        optim=optim,
        schedule=ScheduleConfig(length=350_000, decay="staircase", decay_every=100_000, decay_rate=0.1),
    )
    small = override(small, {"view.jitter": 18, "view.shift": 2})  # released code
    deep = override(small, {"net": NetConfig(name="vgg:16", norm="batch").model_dump()})  # the head is AlexNet's: ours
    student = TrainConfig(  # ours, but for the net
        net=NetConfig(name="alexnet", stem_stride=4, norm="lrn", grid=6, hidden=(4096, 4096), dropout=0.5),
        preprocess=Preprocess(size=227, crop="center"),
        view=ViewConfig(crop="resized", flip=True),
        mix="pseudo",
        pseudo=PseudoConfig(targets="hard"),
        batch=256,
        lanes=8,
        label_smoothing=0.0,
        ema=None,
        optim=optim,
        schedule=ScheduleConfig(unit="epochs", length=90, decay="staircase", decay_every=30, decay_rate=0.1),
    )
    probe = LayerProbeConfig(
        net=NetConfig(name="alexnet", stem_stride=4, norm="lrn"),
        preprocess=Preprocess(size=227, crop="center"),
        view=ViewConfig(crop="resized", flip=True),
        batch=256,
        optim=OptimConfig(lr=0.01, nesterov=False, weight_decay=5e-4),
        schedule=ScheduleConfig(length=140_000, decay="staircase", decay_every=40_000, decay_rate=0.1),
    )
    judged = override(student, {"mix": "labeled", "fresh_head": True})
    layer = LayerConfig(name="conv4", grid=4, normalise=True)  # ours: which layer is not known
    return KnowledgeTransferRecipe(
        images=ImagesConfig(labeled="imagenet/train/", test="imagenet/val/", needs_unlabeled=False, shard_rows=1000),
        teachers={
            "small": TeacherConfig(pretext=small, layer=layer),
            "deep": TeacherConfig(pretext=deep, layer=layer),
            "small-2016": TeacherConfig(pretext=override(small, {**JIGSAW_2016, "view.jitter": None}), layer=layer),
        },
        hog=DescribeConfig(hog=HOGConfig(cell=32), preprocess=pixels),  # ours
        cluster=ClusterConfig(k=2000),
        student=student,
        arms={
            "jigsaw": ArmConfig(teacher="small-2016"),
            "jigsaw++": ArmConfig(teacher="small"),
            "cc+jigsaw++": ArmConfig(teacher="small", clusters=2000),
            "cc+vgg-jigsaw++": ArmConfig(teacher="deep", clusters=2000),
            "cc+hog": ArmConfig(teacher=HOG, clusters=2000),
        },
        probe=probe,
        fresh=FreshLayersConfig(train=judged),
        finetune=judged,
    )


COUNTS = (500, 1000, 2000, 5000, 10_000)


def clusters(recipe: KnowledgeTransferRecipe, counts: tuple[int, ...] = COUNTS) -> KnowledgeTransferRecipe:
    """Only how many clusters: the ablation of the paper (a figure: 500 to 10,000, on VOC classification)."""
    arms = {f"k-{count}": ArmConfig(teacher="deep", clusters=count) for count in counts}
    return recipe.model_copy(update={"arms": arms, "random": False})


def crossed(recipe: KnowledgeTransferRecipe, other: ImagesConfig, k: int) -> KnowledgeTransferRecipe:
    """Clusters of one set, students of another: the paper's ImageNet / Places rows."""
    arms = {
        "images-images": ArmConfig(teacher="deep", clusters=k),
        "images-other": ArmConfig(teacher="deep", clusters=k, label_on="other"),
        "other-images": ArmConfig(teacher="deep", clusters=k, cluster_on="other"),
    }
    return recipe.model_copy(update={"arms": arms, "other": other, "random": False})


def miniature() -> KnowledgeTransferRecipe:
    """Clothes in 28 pixels, on two cores: the pretexts on 50,000 images without labels, 1,000 labels to judge by."""
    small = NetConfig(name="alexnet", multiplier=0.25, small_image=True)
    pretext = JigsawConfig(
        net=small,
        head=PuzzleHeadConfig(tile=64, hidden=512, dropout=0.0, norm=True),
        batch=128,
        lanes=4,
        optim=OptimConfig(name="adamw", lr=2e-3, weight_decay=0.05),
        schedule=ScheduleConfig(length=1500, warmup=100),
    )
    pretext = override(pretext, {"permutations.count": 100})
    deep = override(pretext, {"net": NetConfig(name="vgg:16", multiplier=0.25).model_dump()})
    old = override(pretext, {**JIGSAW_2016, "permutations.count": 100})
    student = TrainConfig(
        net=small,
        view=ViewConfig(crop="pad", pad=2),
        mix="pseudo",
        pseudo=PseudoConfig(targets="hard"),
        batch=128,
        label_smoothing=0.0,
        ema=0.99,
        optim=OptimConfig(lr=0.05),
        schedule=ScheduleConfig(length=1000, warmup=50),
    )
    probe = LayerProbeConfig(
        net=small, batch=128, optim=OptimConfig(lr=0.01, nesterov=False), schedule=ScheduleConfig(length=400)
    )
    finetune = override(
        student,
        {
            "mix": "labeled",
            "fresh_head": True,
            "batch": 64,
            "optim.lr": 0.02,
            "optim.weight_decay": 0.0,
            "schedule.length": 300,
        },
    )
    layer = LayerConfig(name="conv4", grid=2, normalise=True)
    return KnowledgeTransferRecipe(
        images=ImagesConfig(labeled="sample:fashion-50k", labels=1000),
        teachers={
            "small": TeacherConfig(pretext=pretext, layer=layer),
            "deep": TeacherConfig(pretext=deep, layer=layer),
            "small-2016": TeacherConfig(pretext=old, layer=layer),
        },
        cluster=ClusterConfig(k=100, pca=64, iterations=40),
        student=student,
        arms={
            "jigsaw": ArmConfig(teacher="small-2016"),
            "jigsaw++": ArmConfig(teacher="small"),
            "cc+jigsaw++": ArmConfig(teacher="small", clusters=100),
            "cc+vgg-jigsaw++": ArmConfig(teacher="deep", clusters=100),
            "cc+hog": ArmConfig(teacher=HOG, clusters=100),
        },
        probe=probe,
        fresh=FreshLayersConfig(train=finetune, layers=(3,)),
        finetune=finetune,
    )


def demo() -> KnowledgeTransferRecipe:
    """The heart of it on the digits that ship with the package: direct transfer against clusters of a deeper teacher, and HOG.

    Evidence: `ssl-ray knowledge-transfer`, Ray with one worker on two cores, 12.5 minutes, one seed, 700 test images:
    fine-tuned 91.4 % (direct), 89.1 % (clusters of the deeper net), 94.1 % (of HOG), 88.4 % (random weights). Answers no row of
    the paper: strokes of digits are what HOG was made for.
    """
    whole = miniature()
    chosen = override(
        whole,
        {
            "images": {"labeled": "sample:mnist5k", "labels": 100, "val_images": 300, "test_images": 700},
            "fresh": None,
            "cluster.k": 60,
            "probe.schedule.length": 300,
            "student.schedule.length": 600,
        },
    )
    changes = {f"teachers.{name}.pretext.schedule.length": 600 for name in ("small", "deep")}
    arms = {
        "jigsaw++": ArmConfig(teacher="small"),
        "cc+vgg-jigsaw++": ArmConfig(teacher="deep", clusters=60),
        "cc+hog": ArmConfig(teacher=HOG, clusters=60),
    }
    teachers = {name: whole.teachers[name] for name in ("small", "deep")}
    return override(chosen.model_copy(update={"arms": arms, "teachers": teachers}), changes)


def tiny() -> KnowledgeTransferRecipe:
    """Everything in seconds, for tests: no accuracy is claimed."""
    whole = miniature()
    changes = {
        f"teachers.{name}.pretext.{setting}": value
        for name in whole.teachers
        for setting, value in (("schedule.length", 6), ("permutations.count", 10), ("batch", 32), ("schedule.warmup", 0))
    }
    arms = {
        "jigsaw": ArmConfig(teacher="small-2016"),
        "cc+vgg-jigsaw++": ArmConfig(teacher="deep", clusters=12),
        "crossed": ArmConfig(teacher="deep", clusters=12, cluster_on="other"),
        "cc+hog": ArmConfig(teacher=HOG, clusters=12, label_on="other"),
    }
    small = {"images": {"labeled": "sample:mnist5k", "labels": 100, "val_images": 100, "test_images": 200}}
    small["other"] = {"labeled": "sample:mnist5k", "labels": 10, "seed": 1}
    few = {
        "cluster.pca": 16,
        "cluster.iterations": 5,
        "student.schedule.length": 6,
        "student.schedule.warmup": 0,
        "student.batch": 32,
        "probe.schedule.length": 6,
        "probe.batch": 32,
        "finetune.schedule.length": 6,
        "finetune.schedule.warmup": 0,
        "fresh.train.schedule.warmup": 0,
        "fresh.train.schedule.length": 6,
        "fresh.layers": (2,),
    }
    return override(whole.model_copy(update={"arms": arms}), {**changes, **small, **few})


def _miniature_clusters() -> KnowledgeTransferRecipe:
    return clusters(miniature(), (20, 100, 500))


def _miniature_crossed() -> KnowledgeTransferRecipe:
    shifted = ImagesConfig(labeled="sample:fashion-shifted", labels=10)  # a sample hides the labels that are not drawn
    return crossed(miniature(), shifted, 100)


def _paper_crossed() -> KnowledgeTransferRecipe:
    return crossed(paper(), ImagesConfig(labeled=None, unlabeled="places205/", shard_rows=1000), 2000)


RECIPES: dict[str, Callable[[], KnowledgeTransferRecipe]] = {
    "demo": demo,
    "tiny": tiny,
    "miniature": miniature,
    "miniature-clusters": _miniature_clusters,
    "miniature-crossed": _miniature_crossed,
    "paper": paper,
    "paper-clusters": lambda: clusters(paper()),
    "paper-crossed": _paper_crossed,
}


def recipe(name: str) -> KnowledgeTransferRecipe:
    """A recipe by name.

    Raises:
        ConfigError: there is none of that name.
    """
    return find(RECIPES, name)
