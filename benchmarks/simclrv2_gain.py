"""What pretraining and distillation are worth by number of labels, over seeds, on Fashion-MNIST.

    python -m benchmarks.simclrv2_gain --seeds 3 --work FOLDER

One pretraining a seed serves all label counts, which are nested. Per count: the same net on the labels alone (supervised),
fine-tuned from the pretrained one, and self-distilled from that. At one count also: fine-tuning from the head's input
instead of its first layer, and a net half as wide: supervised, pretrained and fine-tuned, self-distilled, and distilled from
the wider one. At many labels also: distillation of four times the length. Settings were chosen on validation images
(`images.val_images`), never on test. Killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks.record import interval, load, save
from ssl_ray.artifacts import Checkpoint, Corpus
from ssl_ray.config import override
from ssl_ray.randomness import seed_of
from ssl_ray.recipes.simclrv2 import SimCLRv2Recipe, fashion
from ssl_ray.scale import inline
from ssl_ray.settings.training import TrainConfig
from ssl_ray.stage import Run
from ssl_ray.stages.evaluate import EvaluateConfig, evaluate
from ssl_ray.stages.extract import ExtractConfig, extract
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.label import label
from ssl_ray.stages.pretrain import pretrain
from ssl_ray.stages.probe import probe
from ssl_ray.stages.select import select
from ssl_ray.stages.train import train
from ssl_ray.subset import SubsetConfig

COUNTS = (10, 40, 100, 400, 1000, 4000)
AT = 400
"""Labels of the comparisons that are made at one count."""

LONGER_AT, LONGER = (1000, 4000), 4
"""Where distillation of the recipe's length stays below its teacher: the same with so many times the steps."""


class Seed:
    """Everything of one seed, under one root."""

    def __init__(self, recipe: SimCLRv2Recipe, seed: int, root: str):
        self.recipe, self.seed = recipe, seed
        self.run = Run(root, inline())  # no Ray: accuracy does not depend on the scale
        self.images: Corpus = self.run("images", ingest, override(recipe.images, {"seed": seed}))
        self.top1: dict[str, float] = {}

    def settings(self, config: TrainConfig, name: str, count: int) -> TrainConfig:
        subset = SubsetConfig(count=count, seed=self.seed)
        return override(config, {"seed": seed_of(self.seed, name) % 2**31, "subset": subset})

    def pretrained(self, name: str, width: int) -> Checkpoint:
        config = override(self.recipe.pretrain, {"net.width": width, "seed": seed_of(self.seed, name) % 2**31})
        found: Checkpoint = self.run(name, pretrain, config, images=self.images)
        return found

    def classifier(self, name: str, count: int, config: TrainConfig, **inputs: Any) -> Checkpoint:
        model: Checkpoint = self.run(name, train, self.settings(config, name, count), images=self.images, **inputs)
        judge = EvaluateConfig(model=name, seed=self.seed, splits=("test",))
        scores = self.run(f"scores/{name}", evaluate, judge, images=self.images, model=model)
        self.top1[name] = next(row["value"] for row in scores.rows if row["metric"] == "top1")
        return model

    def distilled(
        self, name: str, count: int, config: TrainConfig, teacher: Checkpoint, start: Checkpoint | None
    ) -> Checkpoint:
        labels = self.run(f"{name}-labels", label, self.recipe.labeler, images=self.images, model=teacher)
        chosen = self.run(f"{name}-chosen", select, self.recipe.selection, labels=labels, images=None)
        return self.classifier(name, count, config, labels=labels, selection=chosen, start=start)

    def everything(self) -> dict[str, float]:
        recipe = self.recipe
        assert recipe.supervised is not None
        assert recipe.self_distill is not None
        assert recipe.distill is not None
        encoder = self.pretrained("pretrain", recipe.pretrain.net.width)
        if recipe.probe is not None:
            features = self.run("features", extract, ExtractConfig(), images=self.images, model=encoder)
            found = self.run("probe", probe, override(recipe.probe, {"seed": self.seed, "seeds": 1}), images=self.images,
                             features=features)  # fmt: skip
            self.top1 |= {f"{row['model']} probe": row["mean"] for row in found.results["table"]}
        for count in COUNTS:
            self.classifier(f"{count}/supervised", count, recipe.supervised)
            tuned = self.classifier(f"{count}/finetuned", count, recipe.finetune, start=encoder)
            own = self.distilled(f"{count}/self-distilled", count, recipe.self_distill, tuned, encoder)
            if count in LONGER_AT:
                self.distilled(f"{count}/longer-distilled", count, lengthened(recipe.self_distill), tuned, encoder)
            if count == AT:
                self.classifier(f"{count}/from-layer-0", count, override(recipe.finetune, {"net.projection": 0}), start=encoder)
                self.half_as_wide(own)
        return self.top1

    def half_as_wide(self, teacher: Checkpoint) -> None:
        """The smaller net by itself, and taught by the larger one."""
        recipe = self.recipe
        assert recipe.supervised is not None
        assert recipe.self_distill is not None
        assert recipe.distill is not None
        net = {"net.width": recipe.distill.net.width}
        encoder = self.pretrained("pretrain-narrow", recipe.distill.net.width)
        self.classifier(f"{AT}/narrow-supervised", AT, override(recipe.supervised, net))
        tuned = self.classifier(f"{AT}/narrow-finetuned", AT, override(recipe.finetune, net), start=encoder)
        self.distilled(f"{AT}/narrow-self-distilled", AT, override(recipe.self_distill, net), tuned, encoder)
        self.distilled(f"{AT}/narrow", AT, recipe.distill, teacher, encoder)
        self.distilled(f"{AT}/narrow-longer", AT, lengthened(recipe.distill), teacher, encoder)


def lengthened(config: TrainConfig) -> TrainConfig:
    return override(config, {"schedule.length": LONGER * config.schedule.length})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", required=True, help="folder for the runs, one a seed; give it again to go on")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    recipe = fashion()
    for seed in range(options.seeds):
        runs.append({"seed": seed, "top1": Seed(recipe, seed, str(Path(options.work) / str(seed))).everything()})
        accuracy = {name: interval([100 * run["top1"][name] for run in runs]) for name in runs[0]["top1"]}
        save(
            "simclrv2_gain",
            {"settings": recipe.model_dump(mode="json"), "counts": COUNTS, "at": AT, "runs": runs, "accuracy": accuracy},
        )
    record = load("simclrv2_gain")
    assert record is not None
    for name in record["accuracy"]:
        values = [100 * run["top1"][name] for run in record["runs"]]
        print(f"{name:<28} {statistics.fmean(values):6.2f} %   {', '.join(f'{value:.2f}' for value in values)}")


if __name__ == "__main__":
    main()
