"""A cluster of small nodes on this machine; one of two is taken away in mid-training, and another one comes:

python -m tests.faults.lose_a_trainer kill|drain ROOT
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ssl_ray import cluster as ssl_ray_cluster
from ssl_ray.config import override
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.recipes.noisy_student import recipe
from ssl_ray.scale import Scale
from ssl_ray.settings.training import ScheduleConfig
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.train import train

STEPS = {"kill": 200, "drain": 600}  # a notice must find the training still at work, also on a fast machine
SAVED_EVERY = {"kill": 20, "drain": 61}
# What a notice has saved is known by its step: one that is also a regular one (of 61 and 25, the first is 1525) would tell nothing.
NOTICE_STEPS = 25


def config(steps: int = 200) -> Any:
    """One training with a moving average and global batch norms; a low rate, so that rounding stays small."""
    return override(
        recipe("tiny").teacher,
        {"schedule": ScheduleConfig(length=steps), "optim.lr": 0.01, "ema": 0.9, "net.width": 16, "precision": "float32"},
    )


def main() -> None:
    mode, root = sys.argv[1:]
    os.environ.update(ssl_ray_cluster.ENVIRONMENT | {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_METRICS_ENABLED": "0"})
    os.environ.update({f"RAY_health_check_{key}": value for key, value in
                       {"initial_delay_ms": "1000", "period_ms": "1000", "timeout_ms": "2000", "failure_threshold": "3"}.items()})  # fmt: skip
    os.environ.pop("RAY_ADDRESS", None)
    import ray
    from ray.cluster_utils import Cluster

    from ssl_ray.spot_notice import drain

    memory = 150 * 2**20
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory, "include_dashboard": True,
                                                          "dashboard_port": 8400 + os.getpid() % 500})  # fmt: skip
    victim = nodes.add_node(num_cpus=1, object_store_memory=memory)
    nodes.add_node(num_cpus=1, object_store_memory=memory)
    os.environ["RAY_ADDRESS"] = nodes.address  # as `ray job submit` does; on a Ray of our own nobody watches for notices
    ray.init(log_to_driver=True)
    scale = Scale(
        train_workers=2,
        train_workers_min=1,
        resize_check_s=5,
        train_threads=1,
        checkpoint_steps=SAVED_EVERY[mode],
        notice_steps=NOTICE_STEPS,
        max_failures=3,
        start_timeout_s=20,
    )
    folder = Path(root) / "student" / "training"

    def saved() -> list[int]:
        """Steps of checkpoints that Ray Train counts: a folder is there before all workers have reported, and a node that goes
        in between rightly leaves it uncounted."""
        known = folder / "checkpoint_manager_snapshot.json"
        return sorted({int(step) for step in re.findall(r'"step-(\d+)"', known.read_text())}) if known.exists() else []

    def go() -> None:
        run = Run(root, scale)
        images = run("images", ingest, ImagesConfig(labels=100, test_images=200))
        run("student", train, config(STEPS[mode]), images=images)

    training = threading.Thread(target=go)
    training.start()
    # Nodes come and go from the main thread alone: Ray sets signals for them.
    if mode == "kill":
        while not saved():
            time.sleep(0.05)
        print(f"LOST after step {saved()[-1]}", flush=True)
        nodes.remove_node(victim, allow_graceful=False)
    else:
        from ray.util.state import list_actors

        # Whoever watches for notices is a process of Ray's, which comes up beside the training.
        up = [("class_name", "=", "PreemptionWatcher"), ("state", "=", "ALIVE")]
        while not (saved() and list_actors(filters=up)) and training.is_alive():
            time.sleep(0.5)
        assert drain(nodes.address, victim.node_id), "the cluster did not agree"
        told = time.monotonic()
        while not (early := [step for step in saved() if step % SAVED_EVERY["drain"]]) and training.is_alive():
            time.sleep(0.05)
        assert early, f"no checkpoint for the notice; those that there are: {saved()}"
        print(f"SAVED step {early[0]}, {time.monotonic() - told:.1f} s after the notice", flush=True)
        # The node may stay for minutes: what it does meanwhile is not lost either.
        while (
            not (later := [step for step in saved() if step % SAVED_EVERY["drain"] and step > early[0]]) and training.is_alive()
        ):
            time.sleep(0.05)
        assert later, f"one checkpoint alone; those that there are: {saved()}"
        print(f"AGAIN step {later[0]}", flush=True)
        nodes.remove_node(victim, allow_graceful=False)
    nodes.add_node(num_cpus=1, object_store_memory=memory)
    print("another node came", flush=True)
    training.join()
    ray.shutdown()
    nodes.shutdown()


if __name__ == "__main__":
    main()
