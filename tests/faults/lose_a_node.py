"""A cluster of two small nodes on this machine; one is taken away while its actor labels: python -m tests.faults.lose_a_node"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from ssl_ray import cluster as ssl_ray_cluster
from ssl_ray.config import override
from ssl_ray.recipes.label import label_recipe
from ssl_ray.scale import Scale
from ssl_ray.stage import Run


def main() -> None:
    images, teacher, root = sys.argv[1:]
    os.environ.update(ssl_ray_cluster.ENVIRONMENT | ssl_ray_cluster.LOCAL_ENVIRONMENT)
    os.environ.pop("RAY_ADDRESS", None)
    import ray
    from ray.cluster_utils import Cluster

    memory = 150 * 2**20
    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": memory},
    )
    victim = nodes.add_node(num_cpus=2, object_store_memory=memory)
    nodes.add_node(num_cpus=2, object_store_memory=memory)
    ray.init(address=nodes.address, log_to_driver=False)

    def lose() -> None:
        labels = Path(root) / "labels" / "labels"
        while len(list(labels.glob("*.parquet"))) < 6:
            time.sleep(0.05)
        nodes.remove_node(victim, allow_graceful=False)
        print("a node was lost", flush=True)

    threading.Thread(target=lose, daemon=True).start()
    from ssl_ray.pipelines.label import label_images

    recipe = override(label_recipe(images, teacher), {"labeler.precision": "float32", "labeler.quarantine_budget": 0.05})
    scale = Scale(
        label_actors_min=2, label_actors_max=2, label_cpus=0.6, label_threads=1, label_rows_per_file=50, label_batch=50
    )
    label_images(Run(root, scale), recipe)
    ray.shutdown()
    nodes.shutdown()


if __name__ == "__main__":
    main()
