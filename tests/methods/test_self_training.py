from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ssl_ray.config import override
from ssl_ray.errors import ResourceError
from ssl_ray.methods.method import Batch
from ssl_ray.methods.self_training import SelfTraining
from ssl_ray.nets.noise import DropPath
from ssl_ray.scale import inline
from ssl_ray.settings.training import TrainConfig
from ssl_ray.train.run import run_training

CONFIG = override(
    TrainConfig(), {"net.width": 8, "net.stochastic_depth": 0.9, "net.dropout": 0.9, "view.crop": "pad", "mix": "joint"}
)


def make_batch(labeled: int = 6, pseudo: int = 6, soft: bool = False) -> Batch:
    g = torch.Generator().manual_seed(0)
    targets = torch.softmax(torch.randn(pseudo, 10, generator=g), 1) if soft else torch.randint(0, 10, (pseudo,), generator=g)
    return Batch(
        torch.randint(0, 256, (labeled + pseudo, 3, 28, 28), generator=g, dtype=torch.uint8),
        torch.randint(0, 10, (labeled,), generator=g),
        targets,
        np.arange(labeled + pseudo),
        labeled + pseudo,
    )


def test_the_average_follows_the_ramp() -> None:
    """A slow transcription: average = d * average + (1 - d) * weight with d = min(ema, (1 + t) / (10 + t))."""
    method = SelfTraining(override(CONFIG, {"ema": 0.5}), 10)
    model = method.build()
    assert model.average is not None
    expected = model.average.head.weight.clone()
    for step in range(12):
        with torch.no_grad():
            model.net.head.weight.add_(1.0)
        method.after_step(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.net.head.weight
        torch.testing.assert_close(model.average.head.weight, expected)
    assert model.used is model.average
    assert not any(p.requires_grad for p in model.average.parameters())


def test_batch_norm_statistics_are_averaged_too() -> None:
    method = SelfTraining(CONFIG, 10)
    model = method.build()
    method.set_training(model)
    method.loss(model, make_batch(), 0)
    method.after_step(model, 100)
    assert model.average is not None
    assert not torch.equal(model.average.backbone.layers[1].running_mean, torch.zeros(8))  # type: ignore[index, union-attr]


def test_the_ablation_leaves_pseudo_labeled_images_alone() -> None:
    method = SelfTraining(override(CONFIG, {"pseudo.noise": False}), 10)
    batch = make_batch()
    clean = SelfTraining(override(CONFIG, {"view.crop": "none"}), 10).views(batch, 3)
    views = method.views(batch, 3)
    assert torch.equal(views[6:], clean[6:])
    assert not torch.equal(views[:6], clean[:6])

    seen: list[torch.Tensor] = []
    model = method.build()
    method.set_training(model)
    paths = [module for module in model.net.modules() if isinstance(module, DropPath) and module.drop > 0.5]
    paths[0].register_forward_hook(lambda module, inputs, output: seen.append((output == 0).flatten(1).all(1)))
    method.loss(model, batch, 3)
    assert not seen[0][6:].any(), "no path of an unlabeled image is dropped"
    assert seen[0][:6].any()


@pytest.mark.parametrize("soft", [True, False])
def test_the_loss_is_the_combination_of_its_parts(soft: bool) -> None:
    config = override(CONFIG, {"net.dropout": 0.0, "net.stochastic_depth": 0.0, "ratio": 1, "combination": "code"})
    method = SelfTraining(config, 10)
    model = method.build()
    method.set_training(model)
    loss, metrics = method.loss(model, make_batch(soft=soft), 0)
    torch.testing.assert_close(loss.detach(), metrics["loss_labeled"] + metrics["loss_pseudo"])


def test_the_same_seed_builds_the_same_net() -> None:
    first, second = SelfTraining(CONFIG, 10).build(), SelfTraining(CONFIG, 10).build()
    other = SelfTraining(override(CONFIG, {"seed": 1}), 10).build()
    assert torch.equal(first.net.head.weight, second.net.head.weight)
    assert not torch.equal(first.net.head.weight, other.net.head.weight)


def test_frozen_layers_keep_weights_and_statistics() -> None:
    method = SelfTraining(override(CONFIG, {"freeze": 1}), 10)
    model = method.build()
    before = {key: value.clone() for key, value in model.net.backbone.layers[1].state_dict().items()}  # type: ignore[index, union-attr]
    method.set_training(model)
    loss, _ = method.loss(model, make_batch(), 0)
    loss.backward()
    assert model.net.backbone.layers[0].weight.grad is None  # type: ignore[index, union-attr]
    for key, value in model.net.backbone.layers[1].state_dict().items():  # type: ignore[index, union-attr]
        assert torch.equal(value, before[key])


def test_a_reflection_is_narrower_than_the_image() -> None:
    with pytest.raises(ValueError, match=r"view\.pad=28 reflects images of 28 pixels; set it below 28"):
        TrainConfig.model_validate({"view": {"crop": "pad", "pad": 28}})
    assert TrainConfig.model_validate({"view": {"crop": "pad", "pad": 27}}).view.pad == 27


@pytest.mark.parametrize(("settings"), [{"batch": 2**40}, {"ratio": 2**40, "mix": "joint"}, {"preprocess": {"size": 2**22}}])
def test_a_batch_larger_than_the_memory_is_refused_before_it_is_read(settings: dict[str, Any]) -> None:
    config = TrainConfig.model_validate(settings)
    payload = {"scale": inline().model_dump(), "method": "self-training", "config": config.model_dump(mode="json")}
    with pytest.raises(
        ResourceError, match=r"images of .* pixels at once: .* of memory.*lower batch, ratio or preprocess.size"
    ):
        run_training(payload, began=0, rank=0, workers=1, workers_on_node=1, restored=None, save=lambda step, state: None)
