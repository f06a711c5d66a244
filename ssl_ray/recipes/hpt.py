"""Recipes of HPT: `paper(...)` value by value, and what fits two cores.

Source: Reed et al., *Self-supervised pretraining improves self-supervised pretraining*, WACV 2022 (arXiv 2103.12718), and the
authors' code (cjrd/self-supervised-pretraining). Where only the code gives a value, the comment says "code".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ssl_ray.config import Config, override
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.errors import ConfigError
from ssl_ray.recipes import find
from ssl_ray.settings.nets import NetConfig, ProjectionConfig
from ssl_ray.settings.pretraining import JigsawConfig, MoCoConfig, SimCLRConfig
from ssl_ray.settings.training import OptimConfig, ScheduleConfig, TrainConfig
from ssl_ray.settings.views import Center, Deviation, Preprocess, SimCLRViewConfig, ViewConfig
from ssl_ray.stages.extract import ExtractConfig
from ssl_ray.stages.probe import ProbeConfig

Phase = Annotated[MoCoConfig | SimCLRConfig | JigsawConfig, Field(discriminator="method")]
"""The settings of one pretraining, by any method of ours."""

Strategy = Literal["base-raw", "base", "target", "hpt", "hpt-bn", "hpt-bn-affine", "chain"]

Pixel = tuple[Center, Center, Center]


class ImageSet(Config):
    """Images, and how their pixels are normalised: HPT takes the statistics of every set."""

    images: ImagesConfig
    mean: Pixel | None = None  # None: those of the recipe's `preprocess`
    std: tuple[Deviation, Deviation, Deviation] | None = None

    @model_validator(mode="after")
    def _named(self) -> ImageSet:
        if not self.images.model_fields_set & {"labeled", "unlabeled"}:  # a default would be another set than the one meant
            raise ValueError("this set names no images; is its name mistyped? Give images.labeled or images.unlabeled")
        return self


class FinetuneGrid(Config):
    """Fine-tuning of all weights on few labels: a grid of rates and schedules; validation images choose, test reports."""

    train: TrainConfig
    labels: tuple[Annotated[int, Field(ge=1)] | None, ...] = (1000,)  # None: all of them, the transfer by full fine-tuning
    balanced: bool = False  # as many labels of every class; False: at least one
    rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (0.01, 0.001)
    schedules: Annotated[tuple[ScheduleConfig, ...], Field(min_length=1)] = (ScheduleConfig(length=2500),)

    @model_validator(mode="after")
    def _consistent(self) -> FinetuneGrid:
        if self.train.mix != "labeled":
            raise ValueError("finetune.train.mix must be labeled: an evaluation has no pseudo-labels")
        return self


class HPTRecipe(Config):
    """Phases and what is asked of them. `net` and `preprocess` are those of all phases, whatever stands in the phases."""

    net: NetConfig = NetConfig()  # init and weights: where the chain begins, if there is neither `base_images` nor --start
    preprocess: Preprocess = Preprocess()
    base_images: ImageSet | None = None
    sources: dict[str, ImageSet] = Field(default_factory=dict)  # between base and target, in this order, for "chain"
    targets: dict[str, ImageSet]
    base: Phase
    source: Phase  # from the base, or from the source before
    target: Phase  # from random weights
    hpt: Phase  # from the base
    norms: Phase  # "base", "hpt-bn" and "hpt-bn-affine": a short pretraining in which batch norms alone learn
    strategies: Annotated[tuple[Strategy, ...], Field(min_length=1)] = ("base", "target", "hpt", "hpt-bn")
    extract: ExtractConfig = ExtractConfig()
    probe: ProbeConfig = ProbeConfig()
    finetune: FinetuneGrid | None = None
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)  # robustness: changes to the phases on the target
    variant_strategies: tuple[Strategy, ...] = ("hpt", "target")
    base_steps: tuple[Annotated[int, Field(ge=1)], ...] = ()  # robustness: HPT from a base of so many steps
    enlarge: bool = False  # images that are smaller than the crops may be enlarged, in all phases
    seed: int = 0

    @field_validator("sources", "targets", "variants")
    @classmethod
    def _names(cls, named: dict[str, Any]) -> dict[str, Any]:
        for name in named:
            if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name) or name == "base":
                raise ValueError(f"{name!r} becomes a folder; take small letters, digits and -_. (and not: base)")
        return named

    @model_validator(mode="after")
    def _consistent(self) -> HPTRecipe:
        if not self.targets:
            raise ValueError("there is no target; give --unlabeled or --labeled images, or targets.NAME.images")
        twice = set(self.sources) & set(self.targets)
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))} is a source and a target; give the sets different names")
        if "chain" in (*self.strategies, *(self.variant_strategies if self.variants else ())) and not self.sources:
            raise ValueError("the strategy chain needs a source between base and target; give sources.NAME.images")
        missing = [step for step in self.base_steps if step not in self.base.snapshots]
        if missing:
            raise ValueError(f"base_steps={missing} are no snapshots of the base; add them to base.snapshots")
        if self.base_steps and self.base_images is None:
            raise ValueError("base_steps need a base phase of this job; give base_images")
        long = self.base.schedule
        if long.unit == "steps" and any(step >= long.length for step in self.base_steps):
            raise ValueError(f"base_steps={list(self.base_steps)} are not all below the {long.length:.0f} steps of the base")
        for name, changes in self.variants.items():
            for phase in (self.hpt, self.target, self.norms):
                try:
                    override(phase, changes)
                except ConfigError as error:
                    raise ValueError(f"variants.{name}: {error}") from None
        return self


PLAIN = {"view.crop": 1.0, "view.flip": False, "view.jitter": 0.0, "view.grey": 0.0, "view.blur": 0.0}
"""Images as they are: what "base" refreshes its statistics on."""

VIEWS = {
    "no-grey": {"view.grey": 0.0},
    "no-jitter": {"view.jitter": 0.0},
    "crop-blur": {"view.grey": 0.0, "view.jitter": 0.0, "view.flip": False},
    "crop": {"view.grey": 0.0, "view.jitter": 0.0, "view.flip": False, "view.blur": 0.0},
}
"""Views weakened one by one; the last two lose the flip as well (code)."""

SHARES: dict[str, dict[str, Any]] = {"1-percent": {"share": 0.01}, "10-percent": {"share": 0.1}, "25-percent": {"share": 0.25}}
"""Fewer images to pretrain on."""

SETS: dict[str, tuple[Pixel, Pixel]] = {
    "bdd": ((0.2789, 0.2929, 0.2902), (0.2474, 0.2653, 0.2761)),
    "chest-xray-kids": ((0.4815,) * 3, (0.2377,) * 3),
    "chexpert": ((0.5028,) * 3, (0.2919,) * 3),
    "coco-2014": ((0.4702, 0.4470, 0.4076), (0.2785, 0.2740, 0.2889)),
    "domainnet-clipart": ((0.7362, 0.7167, 0.6834), (0.3642, 0.3654, 0.3887)),
    "domainnet-infograph": ((0.6888, 0.6970, 0.6648), (0.3331, 0.3094, 0.3281)),
    "domainnet-painting": ((0.5743, 0.5466, 0.5083), (0.3088, 0.3007, 0.3168)),
    "domainnet-quickdraw": ((0.9525,) * 3, (0.2128,) * 3),
    "domainnet-real": ((0.6059, 0.5890, 0.5558), (0.3344, 0.3279, 0.3493)),
    "domainnet-sketch": ((0.8327, 0.8270, 0.8179), (0.2727, 0.2753, 0.2810)),
    "flowers": ((0.4355, 0.3777, 0.2880), (0.2970, 0.2459, 0.2705)),
    "voc-0712": ((0.4511, 0.4292, 0.3967), (0.2764, 0.2729, 0.2849)),
    "resisc45": ((0.368, 0.381, 0.3436), (0.2035, 0.1854, 0.1849)),
    "uc-merced": ((0.4842, 0.4901, 0.4505), (0.2180, 0.2021, 0.1958)),
    "viper": ((0.3485, 0.3422, 0.3395), (0.2449, 0.2408, 0.2390)),
    "xview": ((0.368, 0.381, 0.3436), (0.2035, 0.1854, 0.1849)),
}
"""Means and deviations of the pixels of the paper's sixteen sets (code; xview's look copied from resisc45)."""

VALIDATION = {"resisc45": 6300, "uc-merced": 420}
"""Validation images (code). Of the other sets we do not know the authors' splits: 1,000 are drawn."""

BOXED = {
    "coco-2014": ("coco:coco-2014/instances_train.json@coco-2014/train/", "coco:coco-2014/instances_val.json@coco-2014/val/"),
    "voc-0712": ("voc:voc-0712/train/", "voc:voc-0712/test/"),
}
"""Sets with several labels an image that a source of ours reads: probed by macro AUROC, not fine-tuned."""

UNREAD = ("chexpert", "viper", "xview")
"""Sets with several labels an image that no source of ours reads with their labels: there are no recipes for them."""

IMAGENET_PIXELS: tuple[Pixel, Pixel] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def paper(name: str = "resisc45") -> HPTRecipe:
    """Base on ImageNet, then one of the paper's targets; the images are looked for in folders of the names.

    Evidence: not run by us: it needs ImageNet and accelerators. The paper finds HPT converged by 5,000 steps in 15 of 16 sets;
    the one number in the authors' code: RESISC-45, HPT-BN, linear, 92.51.

    Differs: one run leaves snapshots at 50, 500 and 5,000 steps, where the authors trained a run of each length; linear probes
    stand on features of whole images, not of crops (`probes/linear.py`).
    """
    mean, std = SETS[name]
    val = VALIDATION.get(name, 1000)
    images = ImagesConfig(labeled=f"{name}/train/", test=f"{name}/test/", val_images=val, needs_unlabeled=False)
    if name in BOXED:
        images = images.model_copy(update={"labeled": BOXED[name][0], "test": BOXED[name][1], "several_labels": True})
    pixels = Preprocess(size=224, crop="center", mean=IMAGENET_PIXELS[0], std=IMAGENET_PIXELS[1])
    hpt = MoCoConfig(
        projection=ProjectionConfig(layers=2, dim=128, norm=False),
        view=SimCLRViewConfig(crop=0.2, strength=0.5, hue=0.4, decode_crops=True),  # code: hue 0.4, where MoCo v2 has 0.1
        batch=256,
        batch_norm=64,  # 4 GPUs (code)
        schedule=ScheduleConfig(length=50_000),
        snapshots=(50, 500, 5_000),
    )
    base = override(
        hpt,
        {
            "view.hue": 0.1,
            "batch_norm": 32,  # 8 GPUs (MoCo's code)
            "schedule": ScheduleConfig(unit="epochs", length=800),
            "snapshots": (),
        },
    )
    finetune = TrainConfig(
        view=ViewConfig(crop="resized", flip=True),
        batch=256,  # code: 64 images, gradients of 4 batches added; the paper's digest: 512
        label_smoothing=0.0,
        optim=OptimConfig(nesterov=False, weight_decay=0.0, head_factor=100.0),  # the head's factor: code
        ema=None,
    )
    steps = ScheduleConfig(length=2500, decay="staircase", decay_every=2500 / 3, decay_rate=0.1)
    return HPTRecipe(
        net=NetConfig(name="torchvision:resnet50"),
        preprocess=pixels,
        base_images=ImageSet(images=ImagesConfig(labeled=None, unlabeled="imagenet/train/")),
        targets={name: ImageSet(images=images, mean=mean, std=std)},
        base=base,
        source=override(hpt, {"schedule.length": 5_000, "snapshots": ()}),
        target=override(hpt, {"schedule.length": 200_000, "snapshots": (5_000, 50_000, 100_000)}),
        hpt=hpt,
        norms=override(hpt, {"schedule.length": 5_000, "snapshots": ()}),
        probe=override(ProbeConfig(seeds=3), {"linear.steps": 5000}),
        finetune=None
        if name in BOXED
        else FinetuneGrid(
            train=finetune,
            labels=(1000, None),
            schedules=(steps, ScheduleConfig(unit="epochs", length=90, decay="staircase", decay_every=30, decay_rate=0.1)),
        ),
    )


def _small(steps: int, snapshots: tuple[int, ...], **changes: Any) -> MoCoConfig:
    """MoCo for 28 pixels and two cores: what of the paper's cannot be kept, smaller."""
    config = MoCoConfig(
        projection=ProjectionConfig(layers=1, dim=64, norm=False),
        view=SimCLRViewConfig(crop=0.4, jitter=1.0, hue=0.5, grey=0.5, flip=False, blur=0.0),
        temperature=0.1,
        queue=4096,
        ema=0.99,
        batch=128,
        lanes=4,
        batch_norm=32,
        optim=OptimConfig(name="adamw", lr=1e-3, weight_decay=1e-4),
        schedule=ScheduleConfig(length=steps),
        snapshots=snapshots,
    )
    return override(config, changes) if changes else config


def miniature() -> HPTRecipe:
    """Base on Fashion-MNIST; targets: other pieces of clothing in another look (colour, ground, rotation), and MNIST digits,
    which are other things in the same look.

    Evidence: `python -m benchmarks.hpt_gain`; the record and its conditions are in docs/hpt.md. Chosen on validation images.

    Changed from the paper, besides the sizes: queue of 4,096, momentum 0.99, temperature 0.1 and a linear head (MoCo's CIFAR
    demo), which learned in hundreds of steps where the two-layer head did not; AdamW for the same reason; no blur; no flip,
    since digits have a left and a right; more colour jitter, since `clothes` has a colour by chance.
    """
    net = NetConfig(name="small_resnet", width=32, stem_stride=2)
    finetune = TrainConfig(
        view=ViewConfig(crop="pad", pad=2),
        batch=64,
        label_smoothing=0.0,
        optim=OptimConfig(nesterov=False, weight_decay=0.0, head_factor=10.0),
        ema=None,
    )
    return HPTRecipe(
        net=net,
        preprocess=Preprocess(size=28),
        base_images=ImageSet(images=ImagesConfig(labeled="sample:fashion-50k", labels=1000)),
        targets={
            "clothes": ImageSet(images=ImagesConfig(labeled="sample:fashion-shifted", labels=4000, val_images=1000)),
            "digits": ImageSet(images=ImagesConfig(labeled="sample:mnist5k", labels=2000, val_images=500, test_images=1000)),
        },
        base=_small(3000, (200, 800)),
        source=_small(200, ()),
        target=_small(1000, (10, 20, 50, 100, 200, 500)),
        hpt=_small(200, (5, 10, 20, 50, 100)),
        norms=_small(50, ()),
        probe=ProbeConfig(seeds=1),
        finetune=FinetuneGrid(
            train=finetune,
            rates=(0.1, 0.01),
            schedules=tuple(
                ScheduleConfig(length=length, decay="staircase", decay_every=length / 3, decay_rate=0.1) for length in (60, 120)
            ),
        ),
    )


def demo() -> HPTRecipe:
    """`miniature` with one target, one target set and short phases: minutes on two cores.

    Evidence: none over seeds; it shows that the phases run.
    """
    base = miniature()
    return override(
        base,
        {
            "base_images.images.labels": 1000,
            "targets": {"digits": base.targets["digits"]},
            "base.schedule.length": 300,
            "base.snapshots": (),
            "target.schedule.length": 400,
            "target.snapshots": (20, 50, 100, 200),
            "hpt.schedule.length": 200,
            "hpt.snapshots": (20, 50, 100),
            "norms.schedule.length": 50,
            "finetune.labels": (100,),
            "finetune.rates": (0.1,),
            "finetune.schedules": base.finetune.schedules[:1] if base.finetune else (),
        },
    )


def tiny() -> HPTRecipe:
    """Everything in seconds, for tests: no accuracy is claimed."""
    base = demo()
    small = {"queue": 128, "batch": 32, "batch_norm": 8}

    def phase(steps: int, snapshots: tuple[int, ...] = ()) -> MoCoConfig:
        return _small(steps, snapshots, **small)

    return override(
        base,
        {
            "net": NetConfig(width=8, stem_stride=2),
            "base_images": ImageSet(images=ImagesConfig(labeled="sample:mnist5k", labels=100, test_images=200)),
            "targets.digits.images.test_images": 200,
            "targets.digits.images.labels": 200,
            "targets.digits.images.val_images": 100,
            "base": phase(6, (3,)),
            "source": phase(4),
            "target": phase(8, (2, 4)),
            "hpt": phase(4, (2,)),
            "norms": phase(3),
            "probe.linear.steps": 40,
            "finetune.labels": (20,),
            "finetune.schedules": (ScheduleConfig(length=4),),
        },
    )


RECIPES: dict[str, Callable[[], HPTRecipe]] = {
    "demo": demo,
    "tiny": tiny,
    "miniature": miniature,
    "paper": paper,
    **{f"paper-{name}": partial(paper, name) for name in SETS if name not in UNREAD},
}


def recipe(name: str) -> HPTRecipe:
    """A recipe by name.

    Raises:
        ConfigError: there is none of that name.
    """
    return find(RECIPES, name)
