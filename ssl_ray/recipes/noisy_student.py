"""Recipes of Noisy Student: `paper()` value by value, and what was changed from it to fit smaller machines.

Source: Xie, Luong, Hovy, Le, *Self-training with Noisy Student improves ImageNet classification*, CVPR 2020 (arXiv
1911.04252), and the authors' released code (google-research/noisystudent). Where only the code gives a value, the comment
says "code".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ssl_ray.config import Config, override
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.health import HealthConfig
from ssl_ray.recipes import find
from ssl_ray.selection import SelectionConfig
from ssl_ray.settings.nets import NetConfig
from ssl_ray.settings.training import OptimConfig, PseudoConfig, ScheduleConfig, TrainConfig
from ssl_ray.settings.views import Preprocess, RandAugmentConfig, ViewConfig
from ssl_ray.stages.label import LabelConfig
from ssl_ray.subset import SubsetConfig


class NoisyStudentRecipe(Config):
    """Algorithm 1 as settings. The ablations of the paper are switches here."""

    images: ImagesConfig = ImagesConfig()
    teacher: TrainConfig
    labeler: LabelConfig = LabelConfig()
    selection: SelectionConfig = SelectionConfig()
    student: TrainConfig
    generations: Annotated[int, Field(ge=1)] = 1
    nets: tuple[NetConfig, ...] = ()  # student nets by generation; the last one stays; empty: student.net
    # Pseudo : labeled by generation; the last one stays; empty: student.ratio.
    ratios: tuple[Annotated[int, Field(ge=1)], ...] = ()
    warm_start: bool = False  # begin with the teacher's weights (finding 8)
    training: Literal["joint", "pretrain-finetune"] = "joint"  # finding 6: joint is better
    finetune: TrainConfig | None = None  # second part of pretrain-finetune; none: the teacher's settings
    resolution_fix: TrainConfig | None = None  # a short fine-tuning at a higher resolution, on labels, without noise
    subset: SubsetConfig | None = None  # of the labels, for teacher and students; the other labels are not used
    health: HealthConfig = HealthConfig()
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> NoisyStudentRecipe:
        if self.teacher.mix != "labeled":
            raise ValueError("teacher.mix must be labeled: there are no pseudo-labels before the teacher")
        if self.student.mix == "labeled":
            raise ValueError("student.mix must be joint or pseudo: a student without pseudo-labels is a teacher")
        return self


# code: pixels and dropout by net; ratio, epochs and magnitude from the per-model comments of `imagenet/train.sh`
EFFICIENTNETS: dict[str, tuple[int, float, int, int, float | None]] = {
    # net: (pixels, dropout, pseudo : labeled, epochs, RandAugment magnitude)
    "b0": (224, 0.2, 1, 700, None),
    "b1": (240, 0.2, 3, 700, None),
    "b2": (260, 0.3, 3, 700, 6),
    "b3": (300, 0.3, 3, 700, 12),
    "b4": (380, 0.4, 3, 700, 15),
    "b5": (456, 0.4, 3, 350, 18),
    "b6": (528, 0.5, 3, 350, 24),
    "b7": (600, 0.5, 3, 350, 27),
}


def paper(net: str = "b7") -> NoisyStudentRecipe:
    """ImageNet with an EfficientNet teacher and a student of the same size (the paper's table of same-size students).

    Evidence: not run by us: it needs ImageNet, 130 million unlabeled images and an accelerator pod. The paper's students
    reach 78.1 (B0), 80.2, 81.1, 82.5, 84.4, 85.0, 85.6 and 85.9 (B7) % top-1.
    """
    pixels, dropout, ratio, epochs, magnitude = EFFICIENTNETS[net]
    batch = 2048  # labeled images; 512, 1,024 and 2,048 are said to do equally well (recalled, not verified)
    train = TrainConfig(
        net=NetConfig(
            name=f"timm:tf_efficientnet_{net}",
            dropout=dropout,
            stochastic_depth=0.2,  # survival 0.8 at the last layer, linear decay
            bn_momentum=0.01,  # code: 0.99 in TensorFlow's sense; epsilon 1e-3 is timm's for these nets
        ),
        preprocess=Preprocess(size=pixels, crop="center", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        view=ViewConfig(
            crop="resized",
            flip=True,
            randaugment=None if magnitude is None else RandAugmentConfig(num_ops=2, magnitude=magnitude),
        ),
        batch=batch,
        lanes=64,
        combination="code",  # with the code's learning rate belongs the code's loss
        label_smoothing=0.1,  # code
        optim=OptimConfig(name="rmsprop", lr=0.016 * batch / 256, momentum=0.9, weight_decay=1e-5),  # 0.128 at 2,048
        schedule=ScheduleConfig(
            unit="epochs", length=epochs, warmup=5, decay="staircase", decay_rate=0.97, decay_every=2.4 * epochs / 350
        ),
        ema=0.9999,  # code
        pseudo=PseudoConfig(targets="soft", temperature=1.0),
    )
    return NoisyStudentRecipe(
        images=ImagesConfig(labeled="imagenet/train/", unlabeled="unlabeled/*.parquet", test="imagenet/val/"),
        teacher=train,
        selection=SelectionConfig(min_confidence=0.3, per_class=130_000),  # both also in the code
        student=train.model_copy(update={"mix": "joint", "ratio": ratio}),
    )


def paper_l2() -> NoisyStudentRecipe:
    """EfficientNet-L2 in three generations from a B7 teacher (Table 6 of the paper): 87.6, 88.1, 88.4 % top-1 in the paper.

    Trained at 475 pixels, then 1.5 epochs at 800 on labeled images without augmentation, shallow layers fixed (the number
    of fixed layers is not published; ours is the stem and about a third of the convolutions).
    """
    base = paper("b7")
    large = base.student.net.model_copy(update={"name": "timm:tf_efficientnet_l2"})
    student = override(base.student, {"net": large, "preprocess.size": 475, "ratio": 14})
    fix = override(
        student,
        {
            "mix": "labeled",
            "preprocess.size": 800,
            "view.crop": "none",
            "view.flip": False,
            "view.randaugment": None,
            "net.dropout": 0.0,
            "net.stochastic_depth": 0.0,
            "freeze": 150,
            "schedule": ScheduleConfig(unit="epochs", length=1.5, decay="constant"),
            "optim.lr": 0.016 * 2048 / 256 * 0.97**145,  # the tail of the long schedule
        },
    )
    return base.model_copy(update={"student": student, "generations": 3, "ratios": (14, 14, 28), "resolution_fix": fix})


def svhn() -> NoisyStudentRecipe:
    """SVHN with B0 at 32 pixels: the one recipe that the released code runs end to end (`svhn_offline.sh`; steps, rate
    and pixel statistics from `main.py` and `task_info.py`).

    Evidence: not run by us (two cores). The released code's note: 97.9 % supervised, 98.6 +- 0.1 % as a student.
    """
    labels, batch, steps = 73_257 - 4_000, 128, 109_474
    # The rate falls from 0.016 to 0.0002 (per 256 images) over all epochs but the five of the warm-up.
    epochs = steps * batch / labels
    decay_every = (epochs - 5) / (math.log(2e-4 / 0.016) / math.log(0.97))
    base = paper("b0")
    train = override(
        base.teacher,
        {
            "net.small_image": True,  # stages 2 and 3 at stride 1
            "preprocess": Preprocess(
                size=32, mean=(0.4376821, 0.4437697, 0.47280442), std=(0.19803012, 0.20101562, 0.19703614)
            ),
            "view": ViewConfig(
                crop="pad",
                pad=4,
                randaugment=RandAugmentConfig(num_ops=2, magnitude=5, translate=4, cutout=4),
                cutout=8,
            ),
            "batch": batch,
            "lanes": 8,
            "optim.lr": 0.016 * batch / 256,
            "optim.weight_decay": 1e-4,
            "schedule": ScheduleConfig(
                unit="steps",
                length=steps,
                warmup=5 * labels / batch,
                decay="staircase",
                decay_every=decay_every * labels / batch,
            ),
        },
    )
    return NoisyStudentRecipe(
        images=ImagesConfig(
            labeled="svhn/train/*.parquet",
            unlabeled="svhn/extra/*.parquet",
            test="svhn/test/*.parquet",
            labels=labels,
            val_images=4_000,
        ),
        teacher=train,
        selection=SelectionConfig(min_confidence=0.3, per_class=53_113),
        student=override(train, {"mix": "joint", "ratio": 5}),
    )


def demo() -> NoisyStudentRecipe:
    """100 labeled MNIST digits and 3,900 unlabeled ones, on two cores, in minutes.

    Evidence: `python -m benchmarks.noisy_student_gain demo`; the record and its conditions are in docs/noisy_student.md. The
    settings were chosen on 1,000 and 2,000 validation images (`images.val_images`), never on test. It answers to the
    paper's table of a student against its teacher, and to finding 4 (the student is the larger net).
    """
    teacher = TrainConfig(
        net=NetConfig(width=16),
        preprocess=Preprocess(size=28),
        # Digits have no left and right, and colour says nothing: shifts, turns and shears alone.
        view=ViewConfig(crop="pad", pad=3, randaugment=RandAugmentConfig(magnitude=5, pool="geometric", translate=6)),
        batch=64,
        optim=OptimConfig(lr=0.1),
        schedule=ScheduleConfig(length=300, warmup=20),
        ema=0.99,
    )
    student = override(
        teacher,
        {
            "net": NetConfig(width=32, stem_stride=2, dropout=0.2, stochastic_depth=0.1),
            "view.randaugment.magnitude": 10,
            "mix": "joint",
            "ratio": 3,
            "pseudo.targets": "hard",
            "schedule.length": 400,
        },
    )
    return NoisyStudentRecipe(
        images=ImagesConfig(labeled="sample:mnist5k", labels=100, test_images=1000),
        teacher=teacher,
        selection=SelectionConfig(min_confidence=0.5),
        student=student,
        generations=2,
    )


def fashion() -> NoisyStudentRecipe:
    """1,000 labeled Fashion-MNIST images, 59,000 unlabeled ones, the set's own 10,000 test images.

    Evidence: `python -m benchmarks.noisy_student_gain fashion`; chosen on 5,000 validation images, never on test. Clothes
    hang straight: turns and shears, which help digits, made a 400-step teacher worse here (one seed), so its noise is a flip
    and a shift.
    """
    return override(
        demo(),
        {
            "images": ImagesConfig(labeled="sample:fashion", labels=1000),
            "teacher.view": ViewConfig(crop="pad", pad=2, flip=True),
            "student.view": ViewConfig(
                crop="pad", pad=2, flip=True, randaugment=RandAugmentConfig(magnitude=3, translate=4, cutout=8)
            ),
            "teacher.schedule.length": 600,
            "student.schedule.length": 800,
            "generations": 1,
        },
    )


def fashion_same_net() -> NoisyStudentRecipe:
    """`fashion` with a teacher of the student's net, noise and batch, as in the paper's table of same-size students.

    Evidence: `python -m benchmarks.noisy_student_gain fashion-same-net`. This is the harder question: the teacher already has
    what the larger net and the noise learn from the labels alone, so that what the student adds comes from the unlabeled
    images.
    """
    base = fashion()
    return override(
        base,
        {
            "teacher.net": base.student.net,
            "teacher.view": base.student.view,
            "teacher.batch": 256,
            "teacher.schedule.length": 800,
            "student.schedule.length": 1200,
        },
    )


def tiny() -> NoisyStudentRecipe:
    """Everything in seconds, for tests: no accuracy is claimed."""
    return override(
        demo(),
        {
            "images.labels": 100,
            "images.test_images": 200,
            "images.shard_rows": 1000,
            "teacher.net.width": 8,
            "student.net.width": 8,
            "teacher.schedule.length": 30,
            "student.schedule.length": 16,
            "selection.min_confidence": 0.0,
            "selection.allow_empty_classes": True,
            "health.max_class_share": 1.0,
            "generations": 1,
        },
    )


RECIPES: dict[str, Callable[[], NoisyStudentRecipe]] = {
    "demo": demo,
    "tiny": tiny,
    "fashion": fashion,
    "fashion-same-net": fashion_same_net,
    "svhn": svhn,
    "paper": paper_l2,
    **{f"paper-{net}": partial(paper, net) for net in EFFICIENTNETS},
}


def recipe(name: str) -> NoisyStudentRecipe:
    """A recipe by name.

    Raises:
        ConfigError: there is none of that name.
    """
    return find(RECIPES, name)
