"""SimCLRv2: pretrain without labels, fine-tune on a few, distill on the unlabeled images.

    ssl-ray simclrv2                                           # 40 labels among 4,000 MNIST digits
    ssl-ray simclrv2 fashion --set subset.count=100
    ray job submit --working-dir . -- python jobs/simclrv2.py paper --root s3://bucket/run --scale cluster

Paper: Chen, Kornblith, Swersky, Norouzi, Hinton, NeurIPS 2020 (arXiv 2006.10029).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ssl_ray import health
from ssl_ray.artifacts import Checkpoint, Corpus, Report
from ssl_ray.cli import parse
from ssl_ray.config import override
from ssl_ray.randomness import seed_of
from ssl_ray.recipes.simclrv2 import RECIPES, SimCLRv2Recipe, recipe
from ssl_ray.report.terminal import finish
from ssl_ray.settings.training import TrainConfig
from ssl_ray.stage import Run
from ssl_ray.stages.evaluate import EvaluateConfig, evaluate
from ssl_ray.stages.extract import ExtractConfig, extract
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.label import label
from ssl_ray.stages.pretrain import pretrain
from ssl_ray.stages.probe import probe
from ssl_ray.stages.report import Generation, ReportConfig
from ssl_ray.stages.report_steps import report_steps
from ssl_ray.stages.select import select
from ssl_ray.stages.train import train


def simclrv2(run: Run, recipe: SimCLRv2Recipe) -> Report:
    """The paper's three steps; every call is a stage that is computed once."""
    images = run("images", ingest, recipe.images)
    steps: list[Generation] = []
    if recipe.supervised is not None:
        alone = run("supervised", train, seeded(recipe, recipe.supervised, "supervised"), images=images)
        steps.append(scored(run, recipe, images, "supervised", alone))
    settings = override(recipe.pretrain, {"seed": seed_of(recipe.seed, "pretrain") % 2**31})
    encoder = run("pretrain", pretrain, settings, images=images)
    probed = None
    if recipe.probe is not None:
        features = run("features", extract, ExtractConfig(), images=images, model=encoder)
        probed = run("probe", probe, override(recipe.probe, {"seed": recipe.seed}), images=images, features=features)
    tuned = run("finetune", train, seeded(recipe, recipe.finetune, "finetune"), images=images, start=encoder)
    steps.append(scored(run, recipe, images, "finetuned", tuned))
    teacher = tuned
    for name, config in (("self-distilled", recipe.self_distill), ("distilled", recipe.distill)):
        if config is not None:
            step = distilled(run, recipe, name, config, images, encoder, teacher)
            steps.append(step)
            teacher = step.model if name == "self-distilled" else teacher
    page = ReportConfig(title="SimCLRv2", recipe=recipe.model_dump(mode="json"))
    return run("report", report_steps, page, images=images, encoder=encoder, steps=steps, probed=probed)


def distilled(
    run: Run, recipe: SimCLRv2Recipe, name: str, config: TrainConfig, images: Corpus, encoder: Checkpoint, teacher: Checkpoint
) -> Generation:
    """Step 3: a student of the teacher's soft labels, stored before or made on the very views that the student sees."""
    start = encoder if recipe.student_start == "pretrained" and same_net(config, recipe) else None
    settings = seeded(recipe, config, name)
    if config.pseudo.teacher == "live":
        student = run(name, train, settings, images=images, start=start, teacher=teacher)
        return scored(run, recipe, images, name, student)
    labels = run(f"{name}-labels", label, recipe.labeler, images=images, model=teacher)
    chosen = run(f"{name}-chosen", select, recipe.selection, labels=labels, images=None)
    if not run.plan:
        health.check_labels(labels.results["health"], recipe.health)
    student = run(name, train, settings, images=images, labels=labels, selection=chosen, start=start)
    return scored(run, recipe, images, name, student, labels, chosen)


def same_net(config: TrainConfig, recipe: SimCLRv2Recipe) -> bool:
    """Whether a student can begin with the pretrained weights."""
    head = {"projection", "zero_head", "dropout"}
    return config.net.model_dump(exclude=head) == recipe.pretrain.net.model_dump(exclude=head)


def seeded(recipe: SimCLRv2Recipe, config: TrainConfig, name: str) -> TrainConfig:
    changes: dict[str, Any] = {"seed": seed_of(recipe.seed, name) % 2**31}
    if recipe.subset is not None:
        changes["subset"] = recipe.subset
    return override(config, changes)


def scored(run: Run, recipe: SimCLRv2Recipe, images: Corpus, name: str, model: Checkpoint, *learned_from: Any) -> Generation:
    config = EvaluateConfig(model=name, seed=recipe.seed)
    return Generation(name, model, run(f"scores/{name}", evaluate, config, images=images, model=model), *learned_from)


def base(name: str, given: Collection[str] = ()) -> SimCLRv2Recipe:
    """The recipe that settings change. `given`: the settings; the user's own images are among them or not."""
    return recipe(name)


def main(arguments: Sequence[str] | None = None) -> Report | None:
    """Run the command, and return its report; None for a plan."""
    options = parse("simclrv2", __doc__.split("\n\n")[0], list(RECIPES), arguments)
    chosen = options.apply(base(options.recipe))
    with options.run() as run:
        report = simclrv2(run, chosen)
    if options.plan is not None:
        return None
    finish(run.root, report)
    return report
