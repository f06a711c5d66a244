"""The strategies of HPT on a near and on a far target, over seeds, on two cores.

    python -m benchmarks.hpt_gain --seeds 3 --work FOLDER [--robustness] [--only SEED]

What `ssl-ray hpt miniature` computes, without Ray: accuracy does not depend on the scale. Every seed draws images, labels,
pretraining and batches anew. `--robustness`: weaker views, fewer images and shorter bases on the far target instead. Settings
were chosen on validation images, never on test. Killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.record import interval, save
from ssl_ray.config import override
from ssl_ray.pipelines.hpt import hpt
from ssl_ray.recipes.hpt import SHARES, VIEWS, HPTRecipe, miniature
from ssl_ray.scale import inline
from ssl_ray.stage import Run


def robustness() -> HPTRecipe:
    """Views, shares and bases on the digits: only the ends of the phases are looked at."""
    whole = miniature()
    return override(
        whole,
        {
            "targets": {"digits": whole.targets["digits"]},
            "strategies": ("hpt", "target"),
            "finetune": None,
            "variants": VIEWS | SHARES,
            "variant_strategies": ("hpt", "target"),
            "base_steps": whole.base.snapshots,
            "hpt.snapshots": (),
            "target.snapshots": (),
        },
    )


def of_seed(recipe: HPTRecipe, seed: int) -> HPTRecipe:
    sets = {"base_images.images.seed": seed} | {f"targets.{name}.images.seed": seed for name in recipe.targets}
    return override(recipe, {"seed": seed, **sets})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", required=True, help="folder for the runs, one a seed; give it again to go on")
    parser.add_argument("--robustness", action="store_true")
    parser.add_argument("--only", type=int, help="this seed alone, with one thread and no record: to run several side by side")
    options = parser.parse_args()
    recipe = robustness() if options.robustness else miniature()
    work = Path(options.work) / ("robustness" if options.robustness else "gain")
    if options.only is not None:
        thread = override(inline(), {"train_threads": 1, "label_threads": 1})
        hpt(Run(str(work / str(options.only)), thread), of_seed(recipe, options.only))
        return
    runs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        found = hpt(Run(str(work / str(seed)), inline()), of_seed(recipe, seed)).results
        runs.append({"seed": seed, "rows": found["rows"], "grid": found["grid"], "speedups": found["speedups"]})
        name = "hpt_robustness" if options.robustness else "hpt_gain"
        save(name, {"settings": recipe.model_dump(mode="json"), "runs": runs})
    for run in runs:
        for line in run["speedups"]:
            print(run["seed"], line)
    last: dict[tuple[str, str, str], list[float]] = {}
    for run in runs:
        for row in run["rows"]:
            if row["last"]:
                last.setdefault((row["target"], row["strategy"], row["variant"]), []).append(100 * row["linear"])
    for key, values in last.items():
        print(*key, *(f"{value:.2f}" for value in interval(values)))


if __name__ == "__main__":
    main()
