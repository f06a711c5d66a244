"""Knowledge transfer by clusters: a pretext net, k-means on its features, a small net that learns the clusters.

    ssl-ray knowledge-transfer                                 # digits: direct transfer, clusters, HOG
    ssl-ray knowledge-transfer miniature --set arms.mine.teacher=deep --set arms.mine.clusters=300
    ray job submit --working-dir . -- python jobs/knowledge_transfer.py paper --root s3://bucket/run --scale cluster

Paper: Noroozi, Vinjimoor, Favaro, Pirsiavash, CVPR 2018 (arXiv 1805.00385).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ssl_ray.artifacts import Checkpoint, Corpus, PseudoLabels, Report, Scores
from ssl_ray.cli import OWN_HEAP, OWN_LABELS, base_parser, options_from, owned
from ssl_ray.config import override
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.errors import ConfigError
from ssl_ray.randomness import seed_of
from ssl_ray.recipes.knowledge_transfer import HOG, RECIPES, ArmConfig, KnowledgeTransferRecipe, Pretext, recipe
from ssl_ray.report.terminal import finish_transfer
from ssl_ray.settings.pretraining import JigsawConfig
from ssl_ray.settings.training import TrainConfig
from ssl_ray.settings.views import Sizes
from ssl_ray.stage import Run
from ssl_ray.stages.cluster import cluster
from ssl_ray.stages.describe import describe
from ssl_ray.stages.evaluate import EvaluateConfig, evaluate
from ssl_ray.stages.extract import ExtractConfig, extract
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.label import label
from ssl_ray.stages.pretrain import pretrain
from ssl_ray.stages.probe_layers import JudgeConfig, judge_layers, probe_layers
from ssl_ray.stages.report import ReportConfig
from ssl_ray.stages.report_transfer import Arm, report_transfer
from ssl_ray.stages.select import select
from ssl_ray.stages.train import train


def knowledge_transfer(run: Run, recipe: KnowledgeTransferRecipe) -> Report:
    """The paper's four steps for every arm; what arms share is computed once."""
    check_before(run, recipe)
    images = {"images": run("images", ingest, recipe.images)}
    if recipe.other is not None:
        images["other"] = run("other", ingest, recipe.other)
    transfer = Transfer(run, recipe, images)
    if not run.plan:
        check_counts(recipe, transfer)
    arms = [transfer.arm(name, arm) for name, arm in recipe.arms.items()]
    if recipe.random:
        arms.append(transfer.judged("random", None))
    page = ReportConfig(title="Knowledge transfer", recipe=recipe.model_dump(mode="json"))
    report: Report = run("report", report_transfer, page, images=images, arms=arms, teachers=list(transfer.teachers.values()))
    return report


def check_before(run: Run, recipe: KnowledgeTransferRecipe) -> None:
    """What would go wrong in hours is said at once: workers that do not fit a training, nets without the layers that are asked
    for, a missing library."""
    from ssl_ray.nets import build_net
    from ssl_ray.nets.hog import HOG as HOGDescriptor
    from ssl_ray.nets.layers import module_named
    from ssl_ray.nets.probed import fitting_grids

    workers = max(1, run.scale.train_workers)
    judges = (recipe.probe, recipe.finetune, None if recipe.fresh is None else recipe.fresh.train)
    used = {arm.teacher for arm in recipe.arms.values()}
    teachers = [teacher for name, teacher in recipe.teachers.items() if name in used]
    for config in (*(teacher.pretext for teacher in teachers), recipe.student, *judges):
        if config is not None:
            config.check_workers(workers)
    for teacher in teachers:
        net = bare_net(teacher.pretext)
        if teacher.layer.name is not None:
            module_named(net, teacher.layer.name)
    if recipe.probe is not None:
        fitting_grids(
            build_net(recipe.probe.net, 2, load=False).backbone, list(recipe.probe.layers), recipe.probe.preprocess.size
        )
    if HOG in used:
        HOGDescriptor(recipe.hog.hog)


def check_counts(recipe: KnowledgeTransferRecipe, transfer: Transfer) -> None:
    """The same of the images: more clusters than there are, or none to cluster."""
    for name, arm in recipe.arms.items():
        count = transfer.images[arm.cluster_on].num_images(transfer.split(arm.cluster_on))
        if arm.clusters is not None and arm.clusters > count:
            raise ConfigError(
                f"arms.{name}.clusters={arm.clusters} clusters are asked for and there are {count} images to cluster; lower it"
            )


def bare_net(config: Pretext) -> Any:
    """Return the backbone that a pretext trains; building it tells whether it takes the tiles."""
    from ssl_ray.nets import build_encoder, build_puzzle

    if isinstance(config, JigsawConfig):
        tile = Sizes(config.preprocess.size, config.view).tile
        return build_puzzle(config.net, config.head, tile=tile, count=2, load=False).backbone
    return build_encoder(config.net, config.projection, load=False).backbone


class Transfer:
    """Teachers, features, clusters and labels by name, each computed once however many arms ask for it."""

    def __init__(self, run: Run, recipe: KnowledgeTransferRecipe, images: dict[str, Corpus]):
        self.run, self.recipe, self.images = run, recipe, images
        self.teachers: dict[str, Checkpoint] = {}

    def arm(self, name: str, arm: ArmConfig) -> Arm:
        """Steps a to d, and the judgement of what came out."""
        teacher = self.teacher(arm.teacher)
        if arm.clusters is None:
            return self.judged(name, teacher)
        centroids = self.clusters(arm, teacher)
        labels = self.labels(arm, centroids)
        chosen = self.run(f"chosen/{place(arm)}", select, self.recipe.selection, labels=labels, images=None)
        settings = self.seeded(self.recipe.student, name)
        student = self.run(
            f"students/{name}", train, settings, images=self.images[arm.label_on], labels=labels, selection=chosen
        )
        return self.judged(name, student, centroids, labels, arm.label_on)

    def teacher(self, name: str) -> Checkpoint:
        """Step a: the pretext."""
        if name not in self.teachers:
            if name == HOG:
                self.teachers[name] = self.run("teachers/hog", describe, self.recipe.hog)
            else:
                settings = override(self.recipe.teachers[name].pretext, {"seed": self.seed(f"teachers/{name}")})
                self.teachers[name] = self.run(f"teachers/{name}", pretrain, settings, images=self.images["images"])
        return self.teachers[name]

    def clusters(self, arm: ArmConfig, teacher: Checkpoint) -> Checkpoint:
        """Step b: features of a layer, and k-means on them."""
        recipe, on = self.recipe, arm.cluster_on
        layer = None if arm.teacher == HOG else recipe.teachers[arm.teacher].layer
        seen = ExtractConfig(splits=(self.split(on),), layer=layer, quarantine_budget=recipe.labeler.quarantine_budget)
        features = self.run(f"features/{arm.teacher}-on-{on}", extract, seen, images=self.images[on], model=teacher)
        settings: dict[str, Any] = {"k": arm.clusters, "seed": self.seed("clusters")}
        if recipe.cluster.pca is not None and "width" in features.results:  # a descriptor may have fewer
            settings["pca"] = min(recipe.cluster.pca, int(features.results["width"]))
            if settings["pca"] < recipe.cluster.pca:
                print(f"note: {arm.teacher} has {settings['pca']} features; cluster.pca={recipe.cluster.pca} keeps them all")
        config = override(recipe.cluster, settings)
        found: Checkpoint = self.run(
            f"clusters/{arm.teacher}-{arm.clusters}-on-{on}", cluster, config, features=features, model=teacher
        )
        return found

    def labels(self, arm: ArmConfig, centroids: Checkpoint) -> PseudoLabels:
        """Step c: the nearest centroid, on the same or on other images."""
        config = override(self.recipe.labeler, {"split": self.split(arm.label_on)})
        on = self.images[arm.label_on]
        found: PseudoLabels = self.run(f"labels/{place(arm)}", label, config, images=on, model=centroids)
        return found

    def split(self, name: str) -> str:
        """Which images of a set are clustered and labeled: the unlabeled ones, or, where labeled ones are enough, those."""
        config = self.recipe.images if name == "images" else self.recipe.other
        assert config is not None
        return "unlabeled" if config.needs_unlabeled else "train"

    def judged(
        self,
        name: str,
        model: Checkpoint | None,
        clusters: Checkpoint | None = None,
        labels: PseudoLabels | None = None,
        labelled: str = "images",
    ) -> Arm:
        """Linear probes on every layer, the layers above anew, and fine-tuning; None: random weights."""
        recipe, images = self.recipe, self.images["images"]
        scores: list[tuple[str, Scores]] = []
        if recipe.probe is not None:
            settings = override(recipe.probe, {"seed": self.seed(f"probe/{name}")})
            probes = self.run(f"probes/{name}", probe_layers, settings, images=images, model=model)
            seen = ExtractConfig(splits=("val", "test"), precision="float32")
            logits = self.run(f"logits/{name}", extract, seen, images=images, model=probes)
            judge = JudgeConfig(model=name, seed=recipe.seed)
            found = self.run(f"scores/{name}/layers", judge_layers, judge, images=images, probes=probes, logits=logits)
            scores.append(("linear", found))
        if recipe.fresh is not None:
            for layers in recipe.fresh.layers:
                changes = {"take": layers, "freeze": layers, "fresh_head": True}
                scores.append(
                    (f"fresh above {layers}", self.trained(f"{name}/fresh-{layers}", recipe.fresh.train, changes, model))
                )
        if recipe.finetune is not None:
            scores.append(("fine-tuned", self.trained(f"{name}/finetuned", recipe.finetune, {"fresh_head": True}, model)))
        return Arm(name, model, clusters, labels, labelled, scores)

    def trained(self, name: str, config: TrainConfig, changes: dict[str, Any], start: Checkpoint | None) -> Scores:
        """A classifier on the labels, from the convolutions of a model; and its scores."""
        images = self.images["images"]
        settings = self.seeded(override(config, changes), name)
        tuned = self.run(f"tuned/{name}", train, settings, images=images, start=start)
        judge = EvaluateConfig(model=name, seed=self.recipe.seed)
        found: Scores = self.run(f"scores/{name}", evaluate, judge, images=images, model=tuned)
        return found

    def seeded(self, config: TrainConfig, name: str) -> TrainConfig:
        return override(config, {"seed": self.seed(name)})

    def seed(self, name: str) -> int:
        return seed_of(self.recipe.seed, name) % 2**31


def place(arm: ArmConfig) -> str:
    """The folder of an arm's labels: arms that label alike share them."""
    return f"{arm.teacher}-{arm.clusters}-on-{arm.cluster_on}-for-{arm.label_on}"


def own_images(recipe: KnowledgeTransferRecipe, labels: bool, heap: bool) -> KnowledgeTransferRecipe:
    """The user's images alone, without the recipe's second heap; without labels nothing can be judged, and only arms with
    clusters make sense."""
    arms = {name: arm for name, arm in recipe.arms.items() if "other" not in (arm.cluster_on, arm.label_on)}
    changes: dict[str, Any] = {"other": None, "arms": arms}
    if heap:  # a recipe that clusters its labeled images must not pass over a heap that was given
        changes["images"] = override(recipe.images, {"needs_unlabeled": True})
    if not labels:
        changes["arms"] = {name: arm for name, arm in arms.items() if arm.clusters is not None}
        changes |= {"images": ImagesConfig(labeled=None), "probe": None, "fresh": None, "finetune": None, "random": False}
    return recipe.model_copy(update=changes)


def base(name: str, given: Collection[str] = ()) -> KnowledgeTransferRecipe:
    """The recipe that settings change. `given`: the settings; where the user's own images are among them, what belongs to the
    recipe's own goes."""
    chosen = recipe(name)
    if OWN_LABELS in given or OWN_HEAP in given:
        return own_images(chosen, OWN_LABELS in given, OWN_HEAP in given)
    return chosen


def main(arguments: Sequence[str] | None = None) -> Report | None:
    """Run the command, and return its report; None for a plan."""
    options, parsed = options_from(base_parser("knowledge_transfer", __doc__.split("\n\n")[0]), list(RECIPES), arguments)
    chosen = options.apply(base(options.recipe, owned(options, parsed)))
    with options.run() as run:
        report = knowledge_transfer(run, chosen)
    if options.plan is not None:
        return None
    finish_transfer(run.root, report)
    return report
