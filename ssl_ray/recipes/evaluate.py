"""Recipes of the evaluation: which probes, and how much fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

from pydantic import Field, model_validator

from ssl_ray.config import Config, override
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.recipes import find
from ssl_ray.settings.training import OptimConfig, ScheduleConfig, TrainConfig
from ssl_ray.settings.views import ViewConfig
from ssl_ray.stages.extract import ExtractConfig
from ssl_ray.stages.probe import ProbeConfig


class EvaluateRecipe(Config):
    """How a checkpoint is judged. Net and preprocessing of the fine-tuning are the checkpoint's own."""

    images: ImagesConfig = ImagesConfig(needs_unlabeled=False)
    extract: ExtractConfig = ExtractConfig()
    probe: ProbeConfig = ProbeConfig()
    finetune: TrainConfig | None = None  # all weights
    projection: Annotated[int, Field(ge=0, le=3)] = 0  # layers of the head that fine-tuning keeps, where there is one
    counts: tuple[Annotated[int, Field(ge=1)], ...] = ()  # labels to fine-tune on
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()  # the same as shares
    seeds: Annotated[int, Field(ge=1)] = 3
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> EvaluateRecipe:
        if self.finetune is not None and self.finetune.mix != "labeled":
            raise ValueError("finetune.mix must be labeled: an evaluation has no pseudo-labels")
        return self


def probes() -> EvaluateRecipe:
    """Linear probe and nearest neighbours on frozen features, on all labels."""
    return EvaluateRecipe()


def demo() -> EvaluateRecipe:
    """Probes on all and on few labels, and full fine-tuning on 100: for small images on two cores."""
    finetune = TrainConfig(
        view=ViewConfig(crop="pad", pad=2),
        batch=64,
        label_smoothing=0.0,
        optim=OptimConfig(lr=0.02, weight_decay=0.0),
        schedule=ScheduleConfig(length=200),
        ema=0.99,
    )
    return EvaluateRecipe(
        images=ImagesConfig(needs_unlabeled=False, labeled="sample:mnist5k", test_images=1000),
        probe=ProbeConfig(counts=(10, 100)),
        finetune=finetune,
        counts=(100,),
    )


def tiny() -> EvaluateRecipe:
    """Everything in seconds, for tests: no accuracy is claimed."""
    return override(
        demo(),
        {
            "images.test_images": 200,
            "probe.linear.steps": 40,
            "probe.seeds": 1,
            "finetune.schedule.length": 4,
            "seeds": 2,
        },
    )


def simclr(share: float) -> EvaluateRecipe:
    """Semi-supervised evaluation as in SimCLRv2: all weights on 1 or 10 % of the labels, from the head's first layer.

    The settings of fine-tuning are those of `recipes/simclrv2.py` `paper` for nets larger than ResNet-50, for which
    `--set finetune.optim.lr=0.005` belongs; the probe's are HPT's.
    """
    from ssl_ray.recipes.simclrv2 import paper

    return EvaluateRecipe(
        images=ImagesConfig(needs_unlabeled=False, labeled="imagenet/train/", test="imagenet/val/"),
        finetune=paper(share=share).finetune,
        projection=1,
        shares=(share,),
        seeds=1,
    )


RECIPES: dict[str, Callable[[], EvaluateRecipe]] = {
    "demo": demo,
    "tiny": tiny,
    "probes": probes,
    "simclr-1pct": partial(simclr, 0.01),
    "simclr-10pct": partial(simclr, 0.1),
}


def recipe(name: str) -> EvaluateRecipe:
    """A recipe by name.

    Raises:
        ConfigError: there is none of that name.
    """
    return find(RECIPES, name)
