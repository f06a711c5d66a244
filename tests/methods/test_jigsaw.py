"""A step of Jigsaw++: it learns, two workers equal one, a restart goes on, the head follows the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ssl_ray.artifacts import Corpus
from ssl_ray.config import override
from ssl_ray.data.loader import assemble, host_batches
from ssl_ray.errors import ConfigError
from ssl_ray.methods.jigsaw import Jigsaw
from ssl_ray.nets import build_described
from ssl_ray.permutations import permutations
from ssl_ray.scale import local
from ssl_ray.settings.pretraining import JigsawConfig
from ssl_ray.train.loop import Loop, Step, parallel, to_device
from ssl_ray.train.streams import make_streams
from tests.workers import on_workers

CPU = torch.device("cpu")
CONFIG = override(
    JigsawConfig(),
    {
        "net": {"name": "alexnet", "multiplier": 0.125, "small_image": True},
        "head": {"tile": 16, "hidden": 32, "dropout": 0.2, "norm": True},
        "permutations.count": 10,
        "batch": 16,
        "lanes": 4,
        "optim": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.0},
        "schedule": {"length": 6},
        "precision": "float32",
    },
)


def make_loop(config: JigsawConfig = CONFIG, workers: int = 1, steps: int = 6) -> Loop:
    return Loop(Jigsaw(config), None, steps=steps, steps_per_epoch=1.0, device=CPU, workers=workers)


def batches(config: JigsawConfig, digits: Corpus, start: int, stop: int) -> Any:
    streams = make_streams(config, digits, None, None, rank=0, workers=1, scale=local())
    return host_batches(streams, start, stop)


def _steps(rank: int, world: int, path: str, steps: int) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    loop = make_loop(workers=world, steps=steps)
    streams = make_streams(CONFIG, Corpus(path), None, None, rank=rank, workers=world, scale=local())
    loop.model.double()
    loop.model.net.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    module: nn.Module = Step(loop.method, loop.model)
    if world > 1:
        module = parallel(module)
    loop.method.set_training(loop.model)
    for step in range(steps):
        loss, _ = module(to_device(assemble(streams, step), CPU), step)
        loop.optimizer.zero_grad()
        loss.backward()
        loop.optimizer.step()
    gradients = {f"gradient.{name}": p.grad for name, p in loop.model.net.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients, **loop.model.state_dict()}


def test_three_workers_with_unequal_shares_equal_one(digits: Corpus, tmp_path: Path) -> None:
    """Tiles, strangers, dropout, batch norm over all tiles: loss, every gradient, weights."""
    one = _steps(0, 1, digits.path, 3)
    several = on_workers(3, _steps, (digits.path, 3), tmp_path)
    assert sum(key.startswith("gradient.") for key in one) > 15
    torch.testing.assert_close(torch.stack([part["loss"] for part in several]).mean(), one["loss"], atol=1e-6, rtol=0)
    for key, value in one.items():
        if key == "loss" or key.startswith("watch."):
            continue
        for part in several:
            torch.testing.assert_close(part[key], value, atol=1e-5, rtol=1e-4, msg=key)


def test_it_learns_to_solve_puzzles(digits: Corpus) -> None:
    config = override(CONFIG, {"schedule.length": 120, "batch": 64, "permutations.count": 5, "head.dropout": 0.0})
    loop = make_loop(config, steps=120)
    loop.run(batches(config, digits, 0, 120), log_steps=40, log=lambda entry: None, save_steps=1000, save=lambda: None)
    solved = [entry["puzzle_accuracy"] for entry in loop.state.history]
    assert solved[-1] > 0.5, solved  # by chance 0.2


def test_a_restart_goes_on_bit_for_bit(digits: Corpus) -> None:
    whole = make_loop()
    whole.run(batches(CONFIG, digits, 0, 6), log_steps=6, log=lambda entry: None, save_steps=100, save=lambda: None)
    first, rest = make_loop(), make_loop()
    saved: list[Any] = []
    first.run(batches(CONFIG, digits, 0, 6), log_steps=6, log=lambda entry: None, save_steps=3,
              save=lambda: saved.append(dict(torch_copy(first.state_dict()).items())))  # fmt: skip
    rest.load_state_dict(saved[0])
    assert rest.state.step == 3
    rest.run(batches(CONFIG, digits, 3, 6), log_steps=6, log=lambda entry: None, save_steps=100, save=lambda: None)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[key], value), key


def torch_copy(state: dict[str, Any]) -> dict[str, Any]:
    import copy

    return copy.deepcopy(state)


def test_partners_are_others_of_the_same_lane(digits: Corpus) -> None:
    [host] = batches(CONFIG, digits, 0, 1)
    batch, method = to_device(host, CPU), Jigsaw(CONFIG)
    found = method.partners(batch, 7)
    assert (found != np.arange(16)).all()
    assert (found // 4 == np.arange(16) // 4).all()
    assert not np.array_equal(found, method.partners(batch, 8))


def test_the_checkpoint_holds_the_permutations_and_tells_how_to_rebuild_the_net() -> None:
    method = Jigsaw(CONFIG)
    model = method.build()
    assert np.array_equal(model.state_dict()["permutations"].numpy(), permutations(CONFIG.permutations))
    description = {"classes": []} | method.describe()
    build_described(description).load_state_dict(model.used.state_dict())


def test_only_the_backbone_is_taken_over() -> None:
    given = Jigsaw(override(CONFIG, {"seed": 5})).build().used.state_dict()
    begun, fresh = Jigsaw(CONFIG).build(given).used, Jigsaw(CONFIG).build().used
    assert all(torch.equal(begun.backbone.state_dict()[k], given[f"backbone.{k}"]) for k in begun.backbone.state_dict())
    assert torch.equal(begun.fc8.weight, fresh.fc8.weight)


def test_norms_alone_learn_where_that_is_asked_for(digits: Corpus) -> None:
    loop = make_loop(override(CONFIG, {"trains": "norm-statistics"}))
    before = {key: value.clone() for key, value in loop.model.net.backbone.named_parameters()}
    means = loop.model.net.backbone.conv1[1].running_mean.clone()
    loop.run(batches(CONFIG, digits, 0, 6), log_steps=6, log=lambda entry: None, save_steps=100, save=lambda: None)
    assert all(torch.equal(value, before[key]) for key, value in loop.model.net.backbone.named_parameters())
    assert not torch.equal(means, loop.model.net.backbone.conv1[1].running_mean)
    with pytest.raises(ConfigError, match="alexnet has none"):
        Jigsaw(override(CONFIG, {"trains": "norm-statistics", "net.norm": "none"})).build()


class TestBadInput:
    def test_an_image_smaller_than_nine_tiles(self) -> None:
        with pytest.raises(ValidationError, match=r"8 pixels has 9 cells of 2, and tiles of 3 pixels do not fit"):
            JigsawConfig.model_validate({"preprocess": {"size": 8}, "view": {"tile": 3}})

    def test_no_other_image_to_occlude_with(self) -> None:
        with pytest.raises(
            ValidationError, match=r"4 lanes of batch 4 have one image each; lower lanes, or set view.occluded=0"
        ):
            JigsawConfig.model_validate({"batch": 4, "lanes": 4})
        JigsawConfig.model_validate({"batch": 4, "lanes": 4, "view": {"occluded": 0}})
