"""What starts beside the workers of a training."""

from __future__ import annotations

from pathlib import Path

import ray
from ray.train import RunConfig, ScalingConfig

from ssl_ray.cluster import stays_one_node
from ssl_ray.config import override
from ssl_ray.scale import Scale
from ssl_ray.train.backend import make_trainer


def helpers(storage: str) -> set[str]:
    trainer = make_trainer(lambda settings: None, {}, ScalingConfig(num_workers=1), RunConfig(storage_path=storage), [1])
    return {type(callback).__name__ for callback in trainer._create_default_callbacks()}


def test_helper_processes_start_only_where_they_have_work(ray_session: None, tmp_path: Path) -> None:
    """A trial's controller may die while the sweep's job goes on: there the workers' places are watched over."""
    everything = {"BackendSetupCallback", "DatasetsCallback", "PlacementGroupCleanerCallback"}

    @ray.remote(num_cpus=0)
    class Trial:
        def helpers(self) -> set[str]:
            return helpers(str(tmp_path))

    assert helpers(str(tmp_path)) & everything == {"BackendSetupCallback"}
    assert ray.get(Trial.remote().helpers.remote()) & everything == everything - {"DatasetsCallback"}


def test_a_head_that_stays_alone_has_nobody_to_notify(ray_session: None, scale: Scale) -> None:
    assert stays_one_node(scale)
    assert not stays_one_node(override(scale, {"autoscaling": True}))
    assert not stays_one_node(override(scale, {"train_workers": 2, "train_workers_min": 1}))
