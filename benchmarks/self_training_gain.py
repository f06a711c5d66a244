"""What self-training is worth for boxes and masks, over seeds, on scenes of real clothes.

    python -m benchmarks.self_training_gain --recipe miniature-table3 --seeds 3 --work FOLDER [--arms NAME ...] [--only SEED]

What `jobs/self_training.py` computes, without Ray: accuracy does not depend on the scale. Every seed draws labels, nets and
views anew; the test scenes are the same. Killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.record import interval, save
from jobs.self_training import self_training
from ssl_ray.config import override
from ssl_ray.recipes.arms import SelfTrainingRecipe
from ssl_ray.recipes.self_training import RECIPES, recipe
from ssl_ray.scale import inline
from ssl_ray.stage import Run
from ssl_ray.stages.evaluate import HEADLINE


def chosen(name: str, arms: list[str]) -> SelfTrainingRecipe:
    """A recipe, or some of its arms."""
    whole = recipe(name)
    return whole if not arms else override(whole, {"arms": {arm: whole.arms[arm] for arm in arms}})


def of_seed(wanted: SelfTrainingRecipe, seed: int) -> SelfTrainingRecipe:
    return override(wanted, {"seed": seed, "images.seed": seed})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="miniature-table3")
    parser.add_argument("--arms", nargs="+", default=[], help="these alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", required=True, help="folder for the runs, one a seed; give it again to go on")
    parser.add_argument("--only", type=int, help="this seed alone, and no record: to run several side by side")
    options = parser.parse_args()
    wanted, work = chosen(options.recipe, options.arms), Path(options.work)
    # Such small maps gain nothing from a second thread: seeds run side by side, one thread each.
    scale = override(inline(), {"train_threads": 1, "label_threads": 1})
    if options.only is not None:
        self_training(Run(str(work / options.recipe / str(options.only)), scale), of_seed(wanted, options.only))
        return
    runs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        found = self_training(Run(str(work / options.recipe / str(seed)), scale), of_seed(wanted, seed)).results
        runs.append({"seed": seed, "arms": found["arms"], "precision": found["precision"]})
        save(f"self_training-{options.recipe}", {"settings": wanted.model_dump(mode="json"), "runs": runs})
    metric = HEADLINE[wanted.images.task][0]
    for arm in wanted.arms:
        values = [100 * run["arms"][arm][metric] for run in runs]
        print(f"{arm:<24}", *(f"{value:.2f}" for value in interval(values)))


if __name__ == "__main__":
    main()
