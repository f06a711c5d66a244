"""Noisy Student: a teacher labels images, a noised student learns from them, and becomes the teacher.

    ssl-ray noisy-student                                      # 100 MNIST digits, 3,900 unlabeled ones
    ssl-ray noisy-student demo --labeled photos/train/ --unlabeled photos/rest/ --test photos/test/
    ray job submit --working-dir . -- python jobs/noisy_student.py fashion --root s3://bucket/run --scale cluster

Paper: Xie, Luong, Hovy, Le, CVPR 2020 (arXiv 1911.04252), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ssl_ray import health
from ssl_ray.artifacts import Checkpoint, Corpus, PseudoLabels, Report, Selection
from ssl_ray.cli import parse
from ssl_ray.config import override
from ssl_ray.randomness import seed_of
from ssl_ray.recipes.noisy_student import RECIPES, NoisyStudentRecipe, recipe
from ssl_ray.report.terminal import finish
from ssl_ray.settings.training import TrainConfig
from ssl_ray.stage import Run
from ssl_ray.stages.evaluate import EvaluateConfig, evaluate
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.label import label
from ssl_ray.stages.report import Generation, ReportConfig, report
from ssl_ray.stages.select import held_out_precision, select
from ssl_ray.stages.train import train


def noisy_student(run: Run, recipe: NoisyStudentRecipe) -> Report:
    """Algorithm 1, line by line; every call is a stage that is computed once."""
    images = run("images", ingest, recipe.images)
    teacher = run("teacher", train, seeded(recipe, recipe.teacher, "teacher"), images=images)
    generations = [Generation("teacher", teacher, scores(run, images, "teacher", teacher, recipe))]
    for number in range(1, recipe.generations + 1):
        labels = run(f"{number}/labels", label, recipe.labeler, images=images, model=teacher)
        chosen = run(f"{number}/chosen", select, recipe.selection, labels=labels, images=copied_from(images, recipe))
        if not run.plan:
            check(recipe, images, generations[-1], labels, chosen)
        student = train_student(run, recipe, number, images, teacher, labels, chosen)
        name = f"student-{number}"
        generations.append(Generation(name, student, scores(run, images, name, student, recipe), labels, chosen))
        teacher = student
    return run("report", report, ReportConfig(recipe=recipe.model_dump(mode="json")), images=images, generations=generations)


def check(recipe: NoisyStudentRecipe, images: Corpus, teacher: Generation, labels: PseudoLabels, chosen: Selection) -> None:
    """The gates of health: better no student than one of worthless labels."""
    health.check_labels(labels.results["health"], recipe.health)
    health.check_precision(*held_out_precision(images, teacher.scores, chosen), recipe.health)


def copied_from(images: Corpus, recipe: NoisyStudentRecipe) -> Corpus | None:
    return images if recipe.selection.materialize else None


def train_student(
    run: Run, recipe: NoisyStudentRecipe, number: int, images: Corpus, teacher: Checkpoint, labels: Any, chosen: Any
) -> Checkpoint:
    """Step 3 of Algorithm 1, or one of its ablations; then the resolution fix, if the recipe has one."""
    config = seeded(recipe, student_of(recipe, number), f"student-{number}")
    start = teacher if recipe.warm_start else None
    name = f"{number}/student"
    first = f"{number}/low-resolution" if recipe.resolution_fix else name
    if recipe.training == "joint":
        student = run(first, train, config, images=images, labels=labels, selection=chosen, start=start)
    else:
        pseudo = override(config, {"mix": "pseudo"})
        before = run(f"{number}/pretrained", train, pseudo, images=images, labels=labels, selection=chosen, start=start)
        settings = override(recipe.finetune or recipe.teacher, {"net": config.net})
        student = run(first, train, seeded(recipe, settings, f"finetune-{number}"), images=images, start=before)
    if recipe.resolution_fix:
        noise = recipe.resolution_fix.net
        net = config.net.model_copy(update={"dropout": noise.dropout, "stochastic_depth": noise.stochastic_depth})
        settings = override(recipe.resolution_fix, {"net": net})
        student = run(name, train, seeded(recipe, settings, f"fix-{number}"), images=images, start=student)
    return student


def student_of(recipe: NoisyStudentRecipe, number: int) -> TrainConfig:
    """The student of a generation: the last of `nets` and `ratios` stays for all later ones."""
    changes: dict[str, Any] = {}
    if recipe.nets:
        changes["net"] = recipe.nets[min(number, len(recipe.nets)) - 1]
    if recipe.ratios:
        changes["ratio"] = recipe.ratios[min(number, len(recipe.ratios)) - 1]
    return override(recipe.student, changes)


def seeded(recipe: NoisyStudentRecipe, config: TrainConfig, name: str) -> TrainConfig:
    changes: dict[str, Any] = {"seed": seed_of(recipe.seed, name) % 2**31}
    if recipe.subset is not None:
        changes["subset"] = recipe.subset
    return override(config, changes)


def scores(run: Run, images: Corpus, name: str, model: Checkpoint, recipe: NoisyStudentRecipe) -> Any:
    return run(f"scores/{name}", evaluate, EvaluateConfig(model=name, seed=recipe.seed), images=images, model=model)


def base(name: str, given: Collection[str] = ()) -> NoisyStudentRecipe:
    """The recipe that settings change. `given`: the settings; the user's own images are among them or not."""
    return recipe(name)


def main(arguments: Sequence[str] | None = None) -> Report | None:
    """Run the command, and return its report; None for a plan."""
    options = parse("noisy_student", __doc__.split("\n\n")[0], list(RECIPES), arguments)
    chosen = options.apply(base(options.recipe))
    with options.run() as run:
        report = noisy_student(run, chosen)
    if options.plan is not None:
        return None
    finish(run.root, report)
    return report
