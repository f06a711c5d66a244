"""Labelling on 1, 2 and 4 nodes with a model that sleeps, so that two cores do not lie about what Ray and files cost:

    python -m benchmarks.label_nodes

Nodes are Ray's own (`cluster_utils.Cluster`), of one logical CPU each, with one labelling actor. A forward pass sleeps as long
as a model would compute; everything else is the real thing: plan, actors, decoding, label files. What is counted is the work
between the first and the last label file; the start of Ray and its actors is given beside.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import save
from ssl_ray import cluster as ssl_ray_cluster
from ssl_ray.config import override
from ssl_ray.recipes.label import label_recipe
from ssl_ray.scale import Scale
from ssl_ray.stage import Run

IMAGES_A_FILE = 50
SLEEP_S = 1.0


def slow_down() -> None:
    """In every worker of Ray: a forward pass that takes as long as a large model's, and no CPU."""
    from ssl_ray.models.classifier import TrainedModel

    whole = TrainedModel.probs

    def probs(self: Any, *words: Any, **more: Any) -> Any:
        found = whole(self, *words, **more)
        time.sleep(SLEEP_S)
        return found

    TrainedModel.probs = probs  # type: ignore[method-assign]


def sleeping(path: Path, images: int) -> tuple[str, str]:
    """Images and a teacher whose forward pass of one batch takes SLEEP_S."""
    from tests.faults.harness import write_corpus
    from tests.teachers import make_model

    source = write_corpus(path / "images", images)
    return source, make_model(path / "teacher", [str(digit) for digit in range(10)], **{"net.width": 4}).path


def one(nodes: int, images: str, teacher: str, root: str) -> dict[str, Any]:
    """Rates on so many nodes."""
    import ray
    from ray.cluster_utils import Cluster

    memory = 150 * 2**20
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory})
    for _ in range(nodes):
        made.add_node(num_cpus=1, object_store_memory=memory)
    ray.init(
        address=made.address, log_to_driver=False, runtime_env={"worker_process_setup_hook": "benchmarks.label_nodes.slow_down"}
    )
    try:
        from ssl_ray.pipelines.label import label_images

        recipe = override(label_recipe(images, teacher), {"labeler.precision": "float32", "labeler.quarantine_budget": 0.05})
        scale = Scale(
            label_actors_min=nodes, label_actors_max=nodes, label_cpus=1.0, label_threads=1, label_batch=IMAGES_A_FILE,
            label_rows_per_file=IMAGES_A_FILE,
        )  # fmt: skip
        begin = time.perf_counter()
        labels, _ = label_images(Run(root, scale, echo=lambda line: None), recipe)
        whole = time.perf_counter() - begin
        times = sorted(path.stat().st_mtime for path in Path(labels.labels.path).glob("*.parquet"))
        # The first files of all actors are the beginning: from then on everybody is at work.
        span, count = times[-1] - times[nodes - 1], len(times) - nodes
        return {
            "nodes": nodes,
            "files": len(times),
            "span_s": round(span, 2),
            "files_per_s": count / span,
            "whole_s": round(whole, 1),
        }
    finally:
        ray.shutdown()
        made.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    os.environ.update(ssl_ray_cluster.ENVIRONMENT | ssl_ray_cluster.LOCAL_ENVIRONMENT)
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    os.environ.pop("RAY_ADDRESS", None)
    found: dict[int, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as place:
        images, teacher = sleeping(Path(place), options.images)
        for turn in range(options.turns):
            for nodes in (1, 2, 4):
                found.setdefault(nodes, []).append(one(nodes, images, teacher, f"{place}/{turn}-{nodes}"))
                print(found[nodes][-1], flush=True)
    best = {nodes: max(run["files_per_s"] for run in runs) for nodes, runs in found.items()}
    linear = {nodes: rate / (nodes * best[1]) for nodes, rate in best.items()}
    save("label_nodes", {"sleep_s": SLEEP_S, "images_a_file": IMAGES_A_FILE, "images": options.images,
                         "runs": [run for runs in found.values() for run in runs],
                         "linear": {str(nodes): round(share, 3) for nodes, share in linear.items()}})  # fmt: skip
    for nodes, share in linear.items():
        print(f"{nodes} nodes: {best[nodes]:.2f} files of {IMAGES_A_FILE} images a second, {share:.3f} of linear")


if __name__ == "__main__":
    main()
