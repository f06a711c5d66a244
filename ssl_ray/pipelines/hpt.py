"""HPT: go on pretraining an encoder on your own images, and see after how many steps it pays.

    ssl-ray hpt                                                 # from clothes to digits, in minutes
    ssl-ray hpt miniature --set strategies='["base", "hpt"]'
    ssl-ray hpt --start runs/simclrv2/pretrain --unlabeled photos/ --root runs/mine
    ray job submit --working-dir . -- python jobs/hpt.py paper-resisc45 --root s3://bucket/run --scale cluster

Paper: Reed et al., *Self-supervised pretraining improves self-supervised pretraining*, WACV 2022 (arXiv 2103.12718).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ssl_ray.artifacts import Checkpoint, Corpus, Report, Scores
from ssl_ray.cli import OWN_HEAP, OWN_LABELS, base_parser, options_from, owned
from ssl_ray.config import override
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.errors import ConfigError
from ssl_ray.randomness import seed_of
from ssl_ray.recipes.hpt import PLAIN, RECIPES, HPTRecipe, ImageSet, recipe
from ssl_ray.report.terminal import finish_hpt
from ssl_ray.settings.nets import NetConfig
from ssl_ray.settings.pretraining import PretrainConfig
from ssl_ray.settings.views import Preprocess
from ssl_ray.stage import Run
from ssl_ray.stages.begin import BeginConfig, begin
from ssl_ray.stages.evaluate import EvaluateConfig, evaluate
from ssl_ray.stages.extract import extract
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.pretrain import check_images, check_sizes, pretrain
from ssl_ray.stages.probe import probe
from ssl_ray.stages.report_hpt import HPTReportConfig, Look, Tuned, report_hpt
from ssl_ray.stages.snapshot import BestConfig, SnapshotConfig, best, snapshot
from ssl_ray.stages.train import SHAPE, check_same_net, train
from ssl_ray.subset import SubsetConfig, draw_subset


def hpt(run: Run, recipe: HPTRecipe, start: Checkpoint | None = None) -> Report:
    """Every strategy on every target: one stage, `pretrain`, folded over phases; only the backbone passes on.

    Args:
        start: where the chain begins, instead of a base phase.
    """
    check_before(run, recipe, start)
    sets = ({"base": recipe.base_images} if start is None and recipe.base_images is not None else {}) | recipe.sources
    images = {name: run(f"images/{name}", ingest, chosen.images) for name, chosen in (sets | recipe.targets).items()}
    if not run.plan:
        for name in images:
            check(recipe, name, images[name])
    chain = Chain(run, recipe, images, start)
    looks = [look for target in recipe.targets for look in chain.looks(target)]
    tuned: list[Tuned] = []
    leaders: dict[str, Checkpoint] = {}
    for target in recipe.targets:
        plain = [look for look in looks if look.target == target and not look.variant]
        if not judged(recipe.targets[target]):  # nothing tells which is best: the end of what this job is for
            plain = [look for look in plain if look.last and look.strategy in ("hpt", "chain")] or plain
        leaders[target] = best_of(run, f"best/{target}", plain)
        if recipe.finetune is not None and judged(recipe.targets[target]):
            tuned += finetuned(run, recipe, target, images[target], plain)
    page = HPTReportConfig(title="HPT", recipe=shown(recipe), begins=start.path if start is not None else "")
    report: Report = run("report", report_hpt, page, images=images, looks=looks, tuned=tuned, phases=chain.phases, best=leaders)
    return report


def shown(recipe: HPTRecipe) -> dict[str, Any]:
    """The settings for the report, with the net and pixels that all phases really have."""
    tree = recipe.model_dump(mode="json")
    for name in ("base", "source", "target", "hpt", "norms"):
        for replaced in ("net", "preprocess", "enlarge"):
            del tree[name][replaced]
    return tree


def best_of(run: Run, name: str, looks: list[Look]) -> Checkpoint:
    found: Checkpoint = run(
        name, best, BestConfig(), models=[look.model for look in looks], probes=[look.probed for look in looks]
    )
    return found


def check_before(run: Run, recipe: HPTRecipe, start: Checkpoint | None) -> None:
    """What would go wrong in hours is said at once: the net, the beginning, workers that do not fit a phase."""
    if start is not None:
        check_same_net(recipe.net, start)
    wanted = {*recipe.strategies, *(recipe.variant_strategies if recipe.variants else ())}
    if wanted != {"target"} and start is None and recipe.base_images is None and not recipe.net.begins_elsewhere:
        raise ConfigError(
            "there is nothing to go on from: give --start CHECKPOINT, net.weights=FILE, net.init=imagenet, or base_images; or "
            "take only the strategy target"
        )
    for phase in (recipe.base, recipe.source, recipe.target, recipe.hpt, recipe.norms):
        phase.check_workers(max(1, run.scale.train_workers))
    if recipe.finetune is not None:
        recipe.finetune.train.check_workers(max(1, run.scale.train_workers))


def check(recipe: HPTRecipe, name: str, images: Corpus) -> None:
    """The same of a set: nothing in it, images smaller than crops, fewer labels than asked for."""
    check_images(images)
    if not recipe.enlarge:
        check_sizes(images, recipe.preprocess.size, "preprocess.size", "enlarge")
    if recipe.finetune is None or name not in recipe.targets or not judged(recipe.targets[name]):
        return
    if images.label_sets is not None:
        raise ConfigError(f"{name} has several labels an image: they serve probes, and no fine-tuning; add --set finetune=null")
    cells = len(recipe.finetune.rates) * len(recipe.finetune.schedules)
    if cells > 1 and not images.num_images("val"):
        raise ConfigError(
            f"a grid of {cells} fine-tunings is chosen from on validation images, and {name} has none; set "
            f"targets.{name}.images.val_images, or --set finetune=null"
        )
    labels = images.column("train", "label")
    for count in recipe.finetune.labels:
        draw_subset(labels, subset_of(recipe, count))


def judged(chosen: ImageSet) -> bool:
    """Whether a set has labels to evaluate on."""
    return chosen.images.labeled is not None


class Chain:
    """Phases by name, each run once however many strategies pass through it."""

    def __init__(self, run: Run, recipe: HPTRecipe, images: Mapping[str, Corpus], start: Checkpoint | None):
        self.run, self.recipe, self.images = run, recipe, images
        self.phases: list[Checkpoint] = []
        self._start = start
        self._base: Checkpoint | None = None

    def phase(
        self,
        name: str,
        config: PretrainConfig,
        on: str,
        start: Checkpoint | None,
        changes: Mapping[str, Any] | None = None,
        *,
        weights: bool = False,
    ) -> Checkpoint:
        """Pretrain on a set. `weights`: the net begins with those that its settings name, and not at random."""
        recipe = self.recipe
        settings = override(
            config,
            {
                "net": recipe.net if weights else plain_net(recipe.net),
                "preprocess": pixels_of(recipe, on),
                "enlarge": recipe.enlarge,
                # A variant differs from its strategy by the change alone, and all strategies get the same share of images.
                "seed": seed_of(recipe.seed, name.partition(VARIANT)[0]) % 2**31,
                "share_seed": recipe.seed,
                **({"snapshots": ()} if VARIANT in name else {}),
                **(changes or {}),
            },
        )
        found: Checkpoint = self.run(f"phases/{name}", pretrain, settings, images=self.images[on], start=start)
        if all(found.path != other.path for other in self.phases):
            self.phases.append(found)
        return found

    def base(self) -> Checkpoint:
        """Where chains begin: a checkpoint of the user's, a phase on the base's images, or weights that others trained."""
        if self._base is None:
            recipe = self.recipe
            if self._start is not None:
                self._base = self._start
            elif recipe.base_images is not None:
                self._base = self.phase("base", recipe.base, "base", None, weights=True)
            else:
                settings = BeginConfig(net=recipe.net, preprocess=recipe.preprocess)
                self._base = self.run("phases/base", begin, settings)
        return self._base

    def through_sources(self) -> Checkpoint:
        passed, name = self.base(), "base"
        for source in self.recipe.sources:
            name += f"-{source}"
            passed = self.phase(name, self.recipe.source, source, passed)
        return passed

    def end(self, target: str, strategy: str, variant: str = "", changes: Mapping[str, Any] | None = None) -> Checkpoint:
        """The last encoder of a strategy on a target."""
        recipe, name = self.recipe, named(target, strategy, variant)
        if strategy == "base-raw":
            return self.base()
        if strategy == "base":
            return self.phase(
                name, recipe.norms, target, self.base(), {"trains": "norm-statistics", **PLAIN, **(changes or {})}
            )
        if strategy == "target":
            return self.phase(name, recipe.target, target, None, changes)
        if strategy == "hpt":
            return self.phase(name, recipe.hpt, target, self.base(), changes)
        if strategy == "chain":
            return self.phase(name, recipe.hpt, target, self.through_sources(), changes)
        trains = {"hpt-bn": "norm-statistics", "hpt-bn-affine": "norm-affine"}[strategy]
        return self.phase(name, recipe.norms, target, self.base(), {"trains": trains, **(changes or {})})

    def looks(self, target: str) -> list[Look]:
        """Every strategy at its snapshots and its end; every variant at its end."""
        recipe, found = self.recipe, []
        for strategy in recipe.strategies:
            model = self.end(target, strategy)
            for step in self._snapshots(model, strategy):
                kept = self.run(f"at/{named(target, strategy)}/{step}", snapshot, SnapshotConfig(step=step), model=model)
                found.append(self._look(target, strategy, "", kept, step))
            found.append(self._look(target, strategy, "", model, None))
        for variant, changes in recipe.variants.items():
            for strategy in recipe.variant_strategies:
                model = self.end(target, strategy, variant, changes)
                found.append(self._look(target, strategy, variant, model, None))
        for step in recipe.base_steps:
            start = self.run(f"at/base/{step}", snapshot, SnapshotConfig(step=step), model=self.base())
            variant = f"base-{step}"
            model = self.phase(named(target, "hpt", variant), recipe.hpt, target, start)
            found.append(self._look(target, "hpt", variant, model, None))
        return found

    def _snapshots(self, model: Checkpoint, strategy: str) -> list[int]:
        if strategy == "base-raw":
            return []
        config = model.record.config
        last = float(model.results.get("steps", "inf"))  # a phase that is only planned has none
        if "steps" not in model.results and config["schedule"]["unit"] == "steps":
            last = config["schedule"]["length"]
        return [step for step in config["snapshots"] if step < last]

    def _look(self, target: str, strategy: str, variant: str, model: Checkpoint, step: int | None) -> Look:
        if not judged(self.recipe.targets[target]):
            return Look(target, strategy, variant, step is None, model, None)
        place, images = f"{named(target, strategy, variant)}/{step or 'end'}", self.images[target]
        features = self.run(f"features/{place}", extract, self.recipe.extract, images=images, model=model)
        settings = override(self.recipe.probe, {"seed": self.recipe.seed})
        probed: Scores = self.run(f"probe/{place}", probe, settings, images=images, features=features)
        return Look(target, strategy, variant, step is None, model, probed)


VARIANT = "--"
"""Between a strategy and its variant, in the names of phases."""


def named(target: str, strategy: str, variant: str = "") -> str:
    return f"{target}-{strategy}" + (f"{VARIANT}{variant}" if variant else "")


def plain_net(net: NetConfig) -> NetConfig:
    """The net without the weights that others trained."""
    return net.model_copy(update={"init": "random", "weights": None})


def pixels_of(recipe: HPTRecipe, on: str, strategy: str = "") -> Preprocess:
    """The preprocessing of a set: with its own pixel statistics, where they are known; as it is, the base keeps its own."""
    chosen = recipe.base_images if on == "base" or strategy == "base-raw" else (recipe.sources | recipe.targets)[on]
    pixels = {} if chosen is None else {"mean": chosen.mean, "std": chosen.std}
    return recipe.preprocess.model_copy(update={key: value for key, value in pixels.items() if value is not None})


def subset_of(recipe: HPTRecipe, count: int | None) -> SubsetConfig | None:
    assert recipe.finetune is not None
    return None if count is None else SubsetConfig(count=count, seed=recipe.seed, balanced=recipe.finetune.balanced)


def finetuned(run: Run, recipe: HPTRecipe, target: str, images: Corpus, looks: list[Look]) -> list[Tuned]:
    """For every strategy, the step that validation likes best, fine-tuned with every rate and schedule of the grid."""
    assert recipe.finetune is not None
    grid, found = recipe.finetune, []
    for strategy in recipe.strategies:
        own = [look for look in looks if look.strategy == strategy]
        begins = best_of(run, f"best-of/{named(target, strategy)}", own)
        pixels = pixels_of(recipe, target, strategy)
        for count in grid.labels:
            scores = []
            for number, schedule in enumerate(grid.schedules):
                for rate in grid.rates:
                    cell = f"{named(target, strategy)}/{count or 'all'}-labels/{rate:g}-{number}"
                    config = override(
                        grid.train,
                        {
                            "net": plain_net(recipe.net),
                            "preprocess": pixels,
                            "optim.lr": rate,
                            "schedule": schedule,
                            "subset": subset_of(recipe, count),
                            "fresh_head": True,
                            "seed": seed_of(recipe.seed, cell) % 2**31,
                        },
                    )
                    model = run(f"finetuned/{cell}", train, config, images=images, start=begins)
                    judge = EvaluateConfig(model=cell, seed=recipe.seed, splits=("val", "test"))
                    scores.append(run(f"scores/{cell}", evaluate, judge, images=images, model=model))
            found.append(Tuned(target, strategy, count, scores))
    return found


def own_images(recipe: HPTRecipe, labels: bool) -> HPTRecipe:
    """The user's images are the one target; without labels nothing can be compared, and HPT alone is run."""
    own = ImageSet(images=ImagesConfig(labeled=None, needs_unlabeled=False))
    changes: dict[str, Any] = {"targets": {"own": own}}
    return recipe.model_copy(update=changes if labels else changes | {"strategies": ("hpt",), "variants": {}, "base_steps": ()})


def net_of(start: Checkpoint) -> NetConfig:
    """The backbone of a checkpoint, without the noise, head and weights that it was trained with."""
    given = start.model["net"]
    return NetConfig.model_validate({key: given[key] for key in (*SHAPE, "bn_momentum") if key in given})


def base(name: str, given: Collection[str] = ()) -> HPTRecipe:
    """The recipe that settings change. `given`: the settings; the user's own images, if they are among them, are the target."""
    chosen = recipe(name)
    if OWN_LABELS in given or OWN_HEAP in given:
        return own_images(chosen, OWN_LABELS in given)
    return chosen


def main(arguments: Sequence[str] | None = None) -> Report | None:
    """Run the command, and return its report; None for a plan."""
    parser = base_parser("hpt", __doc__.split("\n\n")[0])
    parser.add_argument("--start", metavar="CHECKPOINT", help="a finished stage to go on from, such as runs/simclrv2/pretrain")
    options, parsed = options_from(parser, list(RECIPES), arguments, images="targets.own.images")
    start = Checkpoint.named(parsed.start) if parsed.start else None
    chosen = base(options.recipe, owned(options, parsed))
    if start is not None:
        chosen = override(chosen, {"net": net_of(start), "preprocess": start.model["preprocess"], "base_images": None})
    chosen = options.apply(chosen)
    with options.run() as run:
        report = hpt(run, chosen, start)
    if options.plan is not None:
        return None
    finish_hpt(run.root, report)
    return report
