"""What starts beside the workers of a training."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import ray
from ray.train import RunConfig, ScalingConfig

from ssl_ray.artifacts import Corpus
from ssl_ray.cluster import stays_one_node
from ssl_ray.config import override
from ssl_ray.methods.self_training import TrainConfig
from ssl_ray.scale import Scale
from ssl_ray.storage import Folder
from ssl_ray.train.backend import make_trainer
from ssl_ray.train.fit import fit


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


@pytest.mark.slow
def test_the_controller_is_a_process_only_in_a_trial(ray_session: None, digits: Corpus, tmp_path: Path, scale: Scale) -> None:
    """And where a loop runs already, as in a notebook, the training runs beside it."""
    config = override(
        TrainConfig(), {"net.width": 8, "schedule.unit": "steps", "schedule.length": 2, "batch": 16, "preprocess.size": 28}
    )

    path = digits.path  # a corpus that was looked into holds locks, which no actor takes

    def trained(name: str) -> int:
        before = controllers()
        fit("self-training", config, Folder(str(tmp_path / name)), scale, images=Corpus(path))
        assert (tmp_path / name / "model.safetensors").exists()
        return len(controllers() - before)

    async def cell() -> int:
        return trained("notebook")

    @ray.remote(num_cpus=0)
    class Trial:
        def trained(self) -> int:
            return trained("trial")

    assert asyncio.run(cell()) == 0
    assert ray.get(Trial.remote().trained.remote()) == 1


def controllers() -> set[str]:
    from ray.util.state import list_actors

    address = ray.get_runtime_context().gcs_address
    return {actor.actor_id for actor in list_actors(address, limit=1000) if actor.class_name == "TrainController"}
