"""What clusters carry into a small net, over seeds, on Fashion-MNIST: architectures, number of clusters, other images.

    python -m benchmarks.transfer_gain --seeds 3 --work FOLDER [--only SEED]

What `ssl-ray knowledge-transfer` computes for `miniature`, `miniature-clusters` and `miniature-crossed`, in one run a seed, so
that pretexts are shared; without Ray: accuracy does not depend on the scale. Every seed draws labels, pretexts, clusters and
students anew. Killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.record import interval, save
from ssl_ray.config import override
from ssl_ray.pipelines.knowledge_transfer import knowledge_transfer
from ssl_ray.recipes.knowledge_transfer import KnowledgeTransferRecipe, miniature, recipe
from ssl_ray.scale import inline
from ssl_ray.stage import Run


def whole() -> KnowledgeTransferRecipe:
    """The miniature with the arms of its two ablations."""
    chosen, counts, crossed = miniature(), recipe("miniature-clusters"), recipe("miniature-crossed")
    mine = {(arm.teacher, arm.clusters, arm.cluster_on, arm.label_on) for arm in chosen.arms.values()}
    more = {
        name: arm
        for name, arm in (counts.arms | crossed.arms).items()
        if (arm.teacher, arm.clusters, arm.cluster_on, arm.label_on) not in mine
    }
    return chosen.model_copy(update={"arms": chosen.arms | more, "other": crossed.other})


def of_seed(chosen: KnowledgeTransferRecipe, seed: int) -> KnowledgeTransferRecipe:
    return override(chosen, {"seed": seed, "images.seed": seed})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", required=True, help="folder for the runs, one a seed; give it again to go on")
    parser.add_argument("--only", type=int, help="this seed alone, with one thread and no record: to run several side by side")
    options = parser.parse_args()
    chosen, work = whole(), Path(options.work)
    if options.only is not None:
        one = override(inline(), {"train_threads": 1, "label_threads": 1, "cluster_threads": 1})
        knowledge_transfer(Run(str(work / str(options.only)), one), of_seed(chosen, options.only))
        return
    runs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        found = knowledge_transfer(Run(str(work / str(seed)), inline()), of_seed(chosen, seed)).results
        table = {row["arm"]: {"nmi": row["nmi"], "purity": row["purity"]} for row in found["table"]}
        runs.append({"seed": seed, "rows": found["rows"], "columns": found["columns"], "agreement": table})
        save("transfer_gain", {"settings": chosen.model_dump(mode="json"), "runs": runs})
    for arm in [*chosen.arms, "random"]:
        for column in runs[0]["columns"]:
            values = [
                100 * row["value"]
                for run in runs
                for row in run["rows"]
                if (row["arm"], row["column"], row["split"]) == (arm, column, "test")
            ]
            print(f"{arm:<18} {column:<14}", *(f"{value:.2f}" for value in interval(values)))


if __name__ == "__main__":
    main()
