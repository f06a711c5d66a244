"""Self-training against pre-training: a teacher labels images, and a student learns from people's and its labels together.

    ssl-ray rethinking                                       # boxes around digits, in minutes
    ssl-ray rethinking miniature-table3                      # 20, 50 and 100 % of the labels, by init
    ssl-ray rethinking segmentation-table2 --root runs/masks
    ssl-ray rethinking photos --labeled coco:train.json@photos/ --unlabeled rest/ --test coco:val.json@photos/
    ray job submit --working-dir . -- python jobs/self_training.py paper-table2 --root s3://bucket/run --scale cluster

Paper: Zoph, Ghiasi, Lin, Cui, Liu, Cubuk, Le, *Rethinking Pre-training and Self-training*, NeurIPS 2020 (arXiv 2006.06882).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ssl_ray import health
from ssl_ray.artifacts import Checkpoint, Corpus, PseudoLabels, Report, Scores, Selection
from ssl_ray.cli import OWN_LABELS, base_parser, options_from, owned
from ssl_ray.config import override
from ssl_ray.errors import ConfigError
from ssl_ray.randomness import seed_of
from ssl_ray.recipes.arms import ArmConfig, InitConfig, SelfTrainingRecipe, Training
from ssl_ray.recipes.self_training import RECIPES, recipe
from ssl_ray.report.terminal import finish_self_training
from ssl_ray.stage import Run
from ssl_ray.stages.evaluate import EvaluateConfig, evaluate
from ssl_ray.stages.export import export
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.label import label
from ssl_ray.stages.pretrain import pretrain
from ssl_ray.stages.report import ReportConfig
from ssl_ray.stages.report_self_training import Cell, report_self_training
from ssl_ray.stages.select import select
from ssl_ray.stages.train import train
from ssl_ray.subset import SubsetConfig


def self_training(run: Run, recipe: SelfTrainingRecipe) -> Report:
    """Every arm: a teacher from its init, and, with self-training, its labels and a student. The job does not know whether
    classes, boxes or masks are learned."""
    images = run("images", ingest, recipe.images)
    arms = Arms(run, recipe, images)
    cells = [arms.cell(name, arm) for name, arm in recipe.arms.items()]
    if recipe.export is not None:
        labelled = next((cell for cell in cells if cell.labels is not None), None)
        if labelled is not None:
            run("export", export, recipe.export, images=images, labels=labelled.labels, selection=labelled.selection)
    settings = ReportConfig(title="Self-training", recipe=recipe.model_dump(mode="json"))
    report: Report = run("report", report_self_training, settings, images=images, cells=cells)
    return report


class Arms:
    """What arms have in common is computed once: inits, teachers, labels; under one root also by several recipes, since folders
    are named after what is in them."""

    def __init__(self, run: Run, recipe: SelfTrainingRecipe, images: Corpus):
        self.run, self.recipe, self.images = run, recipe, images
        learns = [name for name in self._used() if recipe.inits[name].learns]
        learns += [name for name, arm in recipe.arms.items() if arm.joint]
        self.other = None
        if learns and recipe.other is not None:
            # Its labels are enough, unless a student of its classifier learns from other images too.
            students = any(recipe.inits[name].student is not None for name in self._used())
            self.other = run("other", ingest, override(recipe.other, {"needs_unlabeled": students}))
        self._starts: dict[str, Checkpoint | None] = {}
        self._labels: dict[str, tuple[PseudoLabels, Selection]] = {}
        self._scores: dict[str, Scores] = {}
        self._teachers: dict[str, Checkpoint] = {}

    def _used(self) -> list[str]:
        return list(dict.fromkeys(arm.init for arm in self.recipe.arms.values()))

    def cell(self, name: str, arm: ArmConfig) -> Cell:
        """One arm, judged."""
        key = place(arm)
        beside = {"other": self.other} if arm.joint else {}
        config = self.config(self.recipe.teacher, arm, key)
        if key not in self._teachers:
            start = self.start(arm.init)
            self._teachers[key] = self.run(f"teachers/{key}", train, config, images=self.images, start=start, **beside)
        teacher = self._teachers[key]
        judged = self.score(f"teachers/{key}", key, teacher)
        if not arm.self_training:
            return Cell(name, key, teacher, judged)
        labels, chosen = self.labels(key, teacher)
        start = teacher if arm.student_start == "teacher" else self.start(arm.init)
        config = self.config(self.recipe.student, arm, f"{key}-student")
        learned = {"labels": labels, "selection": chosen, "start": start}
        where = f"students/{key}" + ("-from-teacher" if arm.student_start == "teacher" else "")
        student = self.run(where, train, config, images=self.images, **learned, **beside)
        return Cell(
            name, key, student, self.score(where, f"{where.removeprefix('students/')}-student", student), judged, labels, chosen
        )

    def config(self, base: Training, arm: ArmConfig, address: str) -> Training:
        """The settings of a training in an arm: its net and init, its labels, its augmentation and length."""
        init = self.recipe.inits[arm.init]
        own = {"weights": init.weights} if init.weights is not None else {"init": "imagenet"} if init.imagenet else {}
        changes: dict[str, Any] = {
            "net": override(self.recipe.net, own),
            "seed": seed_of(self.recipe.seed, address) % 2**31,
            "schedule.length": base.schedule.length * self.recipe.longer.get(arm.augment, 1.0),
        }
        if arm.joint:
            changes["beside"] = self.recipe.beside
        if arm.share < 1:
            changes["subset"] = SubsetConfig(share=arm.share, seed=self.recipe.seed)
        if arm.augment != "own":
            changes["augment.name"] = arm.augment
        return override(base, changes)

    def labels(self, key: str, teacher: Checkpoint) -> tuple[PseudoLabels, Selection]:
        """A teacher's labels, and which of them a student sees."""
        if key not in self._labels:
            labels = self.run(f"labels/{key}", label, self.recipe.labeler, images=self.images, model=teacher)
            chosen = self.run(f"chosen/{key}", select, self.recipe.selection, labels=labels)
            if not self.run.plan:
                judged = health.of_kept(
                    labels.results["health"],
                    labels.results["classes"],
                    chosen.results["kept"],
                    self.images.results.get("per_class"),
                )
                health.check_labels(judged, self.recipe.health)
            self._labels[key] = labels, chosen
        return self._labels[key]

    def score(self, where: str, name: str, model: Checkpoint) -> Scores:
        if where not in self._scores:
            settings = EvaluateConfig(model=name, seed=self.recipe.seed)
            self._scores[where] = self.run(f"scores/{where}", evaluate, settings, images=self.images, model=model)
        return self._scores[where]

    def start(self, name: str) -> Checkpoint | None:
        """What an init begins with; None for random weights and files, which the net's own settings name."""
        if name not in self._starts:
            self._starts[name] = self._begin(name, self.recipe.inits[name])
        return self._starts[name]

    def _begin(self, name: str, init: InitConfig) -> Checkpoint | None:
        if init.checkpoint is not None:
            return Checkpoint.named(init.checkpoint)
        mean = {"preprocess.mean": self.recipe.teacher.preprocess.mean, "preprocess.std": self.recipe.teacher.preprocess.std}

        def settings(config: Any, address: str) -> Any:
            # Dropout and the like are the init's own; the backbone is everybody's.
            seed = seed_of(self.recipe.seed, "init", address) % 2**31
            return override(config, {"net": self.recipe.net, "seed": seed, **mean})

        if init.pretrain is not None:
            return self.run(f"inits/{name}", pretrain, settings(init.pretrain, name), images=self.other)
        if init.classifier is None:
            return None
        # Under the first init that has it, so that ImageNet and ImageNet++ share their classifier.
        first = next(other for other in self._used() if self.recipe.inits[other].classifier == init.classifier)
        classifier = self.run(f"inits/{first}/classifier", train, settings(init.classifier, "classifier"), images=self.other)
        if init.student is None:
            return classifier
        labeler = override(self.recipe.labeler, {"scales": (1.0,)})  # several belong to boxes and masks
        labels = self.run(f"inits/{name}/labels", label, labeler, images=self.other, model=classifier)
        chosen = self.run(f"inits/{name}/chosen", select, self.recipe.other_selection, labels=labels)
        student: Checkpoint = self.run(
            f"inits/{name}/student", train, settings(init.student, name), images=self.other, labels=labels, selection=chosen
        )
        return student


def place(arm: ArmConfig) -> str:
    """A folder's name: arms that differ in self-training alone share a teacher."""
    return f"{arm.init}-{arm.augment}" + ("" if arm.share == 1 else f"-{100 * arm.share:g}%") + ("-joint" if arm.joint else "")


def own_images(recipe: SelfTrainingRecipe, has_other: bool) -> SelfTrainingRecipe:
    """The user's images: arms whose init learns from a sample's single things make no sense then."""
    recipe = override(recipe, {"images.val_images": 0})  # of the recipe's own images, which there may be fewer of
    if has_other:
        return recipe
    arms = {name: arm for name, arm in recipe.arms.items() if not recipe.inits[arm.init].learns and not arm.joint}
    if not arms:
        raise ConfigError(
            "all arms of this recipe begin with nets that learn from `other` images; name those with --set other.labeled"
        )
    inits = {name: init for name, init in recipe.inits.items() if any(arm.init == name for arm in arms.values())}
    return override(recipe, {"arms": arms, "inits": inits, "other": None})


def base(name: str, given: Collection[str] = ()) -> SelfTrainingRecipe:
    """The recipe that settings change. `given`: the settings; where the user's own images are among them, what belongs to the
    recipe's own goes."""
    chosen = recipe(name)
    if OWN_LABELS in given:
        return own_images(chosen, any(key.startswith("other.") for key in given))
    return chosen


def main(arguments: Sequence[str] | None = None) -> Report | None:
    """Run the command, and return its report; None for a plan."""
    options, parsed = options_from(base_parser("self_training", __doc__.split("\n\n")[0]), list(RECIPES), arguments)
    chosen = options.apply(base(options.recipe, owned(options, parsed)))
    if chosen.images.labeled is None:
        raise ConfigError(
            f"the recipe {options.recipe} is for images of your own; give --labeled coco:instances.json@images/ or voc:folder/"
        )
    with options.run() as run:
        report = self_training(run, chosen)
    if options.plan is not None:
        return None
    finish_self_training(run.root, report)
    return report
