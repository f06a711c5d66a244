"""What init, augmentation, self-training and joint training are worth for boxes and masks, over seeds, on scenes of clothes.

    python -m benchmarks.self_training_gain --recipes miniature-table3 miniature-table7 --seeds 3 --work FOLDER [--only SEED]

What `ssl-ray rethinking` computes, without Ray: accuracy does not depend on the scale. Every seed draws labels, nets and
views anew; the test scenes are the same. The recipes of one task share a root for each seed, and so the cells that they have in
common. Killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.record import interval, load, save
from ssl_ray.config import override
from ssl_ray.pipelines.self_training import self_training
from ssl_ray.recipes.arms import SelfTrainingRecipe
from ssl_ray.recipes.self_training import RECIPES, recipe
from ssl_ray.scale import inline
from ssl_ray.stage import Run
from ssl_ray.stages.evaluate import HEADLINE


def of_seed(wanted: SelfTrainingRecipe, seed: int) -> SelfTrainingRecipe:
    return override(wanted, {"seed": seed, "images.seed": seed})


def made(work: Path, wanted: SelfTrainingRecipe, seed: int) -> dict[str, Any]:
    """The results of one table and seed."""
    # Such small maps gain nothing from a second thread: seeds run side by side, one thread each.
    scale = override(inline(), {"train_threads": 1, "label_threads": 1})
    root = work / wanted.images.task / str(seed)
    report = ["report"] if (root / "report").exists() else []  # of the table before
    return self_training(Run(str(root), scale, report), of_seed(wanted, seed)).results


def merged(name: str, wanted: SelfTrainingRecipe) -> dict[int, dict[str, Any]]:
    """The runs so far, by seed.

    Raises:
        SystemExit: they were made with other settings; what was measured is not thrown away unasked.
    """
    record = load(f"self_training-{name}")
    if record is None:
        return {}
    try:
        before = type(wanted).model_validate(record["settings"])  # settings that are newer than the record get their defaults
    except ValueError:
        before = None
    if before != wanted:
        raise SystemExit(f"benchmarks/records/self_training-{name}.json holds runs with other settings; move it away first")
    return {run["seed"]: run for run in record["runs"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--recipes", choices=sorted(RECIPES), nargs="+", default=["miniature-table3"], metavar="RECIPE")
    parser.add_argument("--arms", nargs="+", default=[], help="these alone; what was measured of others stays in the record")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", required=True, help="folder for the runs, one a task and seed; give it again to go on")
    parser.add_argument("--only", type=int, help="this seed alone, and no record: to run several side by side")
    options = parser.parse_args()
    work = Path(options.work)
    for name in options.recipes:
        wanted = recipe(name)
        merged(name, wanted)  # before the work
        part = override(wanted, {"arms": {arm: wanted.arms[arm] for arm in options.arms or wanted.arms}})
        if options.only is not None:
            made(work, part, options.only)
            continue
        for seed in range(options.seeds):
            found = made(work, part, seed)
            runs = merged(name, wanted)
            before = runs.get(seed, {"arms": {}, "precision": []})
            kept = [curve for curve in before["precision"] if curve["arm"] not in part.arms]
            runs[seed] = {
                "seed": seed,
                "arms": before["arms"] | found["arms"],
                "precision": kept + found["precision"],
            }
            save(f"self_training-{name}", {"settings": wanted.model_dump(mode="json"), "runs": list(runs.values())})
        metric = HEADLINE[wanted.images.task][0]
        for arm in part.arms:
            values = [100 * run["arms"][arm][metric] for run in merged(name, wanted).values() if arm in run["arms"]]
            print(f"{name:<24} {arm:<24}", *(f"{value:.2f}" for value in interval(values)))


if __name__ == "__main__":
    main()
