"""How good is a checkpoint? Linear probe, nearest neighbours, few labels, full fine-tuning.

    ssl-ray evaluate --model runs/simclrv2/pretrain --root runs/judged
    ssl-ray evaluate probes --model runs/mine/pretrain --labeled photos/train/ --test photos/test/ --root runs/judged

For a checkpoint of any method, and for nets of timm and torchvision that `ssl-ray label` took over.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ssl_ray.artifacts import Checkpoint, Corpus, Report, Scores
from ssl_ray.cli import base_parser, options_from
from ssl_ray.config import override
from ssl_ray.errors import ConfigError
from ssl_ray.randomness import seed_of
from ssl_ray.recipes.evaluate import RECIPES, EvaluateRecipe, recipe
from ssl_ray.report.terminal import finish_evaluation
from ssl_ray.stage import Run
from ssl_ray.stages.evaluate import EvaluateConfig, evaluate
from ssl_ray.stages.extract import extract
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.probe import probe
from ssl_ray.stages.report import ReportConfig
from ssl_ray.stages.report_evaluation import report_evaluation
from ssl_ray.stages.train import train
from ssl_ray.subset import SubsetConfig


def evaluation(run: Run, recipe: EvaluateRecipe, model: Checkpoint) -> Report:
    """Features once, all probes on them; then fine-tunings, each on labels of its own draw."""
    if recipe.finetune is not None and recipe.images.several_labels:
        raise ConfigError("images with several labels each serve probes, and no fine-tuning; add --set finetune=null")
    if recipe.finetune is not None and "hog" in model.model:
        raise ConfigError(f"{model.path} is a descriptor that nobody trains: it serves probes alone; add --set finetune=null")
    images = run("images", ingest, recipe.images)
    features = run("features", extract, recipe.extract, images=images, model=model)
    probed = run("probe", probe, override(recipe.probe, {"seed": recipe.seed}), images=images, features=features)
    tuned = finetuned(run, recipe, images, model) if recipe.finetune is not None else []
    page = ReportConfig(title="Evaluation", recipe=recipe.model_dump(mode="json"))
    return run("report", report_evaluation, page, images=images, model=model, probed=probed, tuned=tuned)


def finetuned(run: Run, recipe: EvaluateRecipe, images: Corpus, model: Checkpoint) -> list[Scores]:
    """All weights, on every number of labels, for every seed."""
    assert recipe.finetune is not None
    description = model.model
    # An encoder offers layers of its head; a classifier comes with those that it kept.
    kept = {"projection": recipe.projection} if "projection" in description else {}
    net = description["net"] | {"zero_head": True, "head": "linear", "weights": None, "init": "random"} | kept
    base = override(recipe.finetune, {"net": net, "preprocess": description["preprocess"], "fresh_head": True})
    subsets = [(f"{count}-labels", SubsetConfig(count=count)) for count in recipe.counts]
    subsets += [(f"{share:g}-of-labels", SubsetConfig(share=share)) for share in recipe.shares]
    scores = []
    for words, subset in subsets:
        for seed in range(recipe.seed, recipe.seed + recipe.seeds):
            name = f"finetuned/{words}/{seed}"
            changes = {"subset": subset.model_copy(update={"seed": seed}), "seed": seed_of(seed, words) % 2**31}
            student = run(name, train, override(base, changes), images=images, start=model)
            judge = EvaluateConfig(model=f"fine-tuned, {words.replace('-', ' ')}", seed=seed, splits=("test",))
            scores.append(run(f"scores/{words}/{seed}", evaluate, judge, images=images, model=student))
    return scores


def base(name: str, given: Collection[str] = ()) -> EvaluateRecipe:
    """The recipe that settings change. `given`: the settings; the user's own images are among them or not."""
    return recipe(name)


def main(arguments: Sequence[str] | None = None) -> Report | None:
    """Run the command, and return its report; None for a plan."""
    parser = base_parser("evaluate", __doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, metavar="CHECKPOINT", help="a finished stage, such as runs/simclrv2/pretrain")
    options, parsed = options_from(parser, list(RECIPES), arguments)
    model = Checkpoint.named(parsed.model)
    chosen = options.apply(base(options.recipe))
    with options.run() as run:
        report = evaluation(run, chosen, model)
    if options.plan is not None:
        return None
    finish_evaluation(run.root, report)
    return report
