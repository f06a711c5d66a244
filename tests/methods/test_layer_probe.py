"""Linear probes of every layer: the net stays, each classifier learns for itself, widths follow the protocol."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssl_ray.artifacts import Corpus
from ssl_ray.config import override
from ssl_ray.data.loader import host_batches
from ssl_ray.errors import ConfigError
from ssl_ray.methods.layer_probe import LayerProbe
from ssl_ray.nets import build_described, build_net
from ssl_ray.nets.columns import alexnet
from ssl_ray.nets.probed import fitting_grids, losses_of
from ssl_ray.scale import local
from ssl_ray.settings.training import LayerProbeConfig
from ssl_ray.train.loop import Loop
from ssl_ray.train.streams import make_streams

CONFIG = override(
    LayerProbeConfig(),
    {
        "net": {"name": "alexnet", "multiplier": 0.125, "small_image": True},
        "batch": 32,
        "optim.lr": 0.01,
        "schedule.length": 30,
        "precision": "float32",
    },
)


def run(config: LayerProbeConfig, digits: Corpus, start: dict[str, torch.Tensor] | None = None) -> Loop:
    loop = Loop(LayerProbe(config, 10), start, steps=30, steps_per_epoch=1.0, device=torch.device("cpu"))
    streams = make_streams(config, digits, None, None, rank=0, workers=1, scale=local())
    loop.run(host_batches(streams, 0, 30), log_steps=10, log=lambda entry: None, save_steps=100, save=lambda: None)
    return loop


def test_the_net_stays_and_the_classifiers_learn(digits: Corpus) -> None:
    given = build_net(CONFIG.net, 4).state_dict()
    loop = run(CONFIG, digits, given)
    for key, value in loop.model.net.backbone.state_dict().items():
        assert torch.equal(value, given[f"backbone.{key}"]), key
    last = loop.state.history[-1]
    assert all(last[f"accuracy_conv{number}"] > 0.5 for number in (1, 2, 3)), last


def test_layers_do_not_touch_each_other(digits: Corpus) -> None:
    every, alone = run(CONFIG, digits), run(override(CONFIG, {"layers": ("conv1",)}), digits)
    assert torch.allclose(every.model.net.heads[0].weight, alone.model.net.heads[0].weight, atol=1e-6)


def test_losses_are_those_of_each_layer() -> None:
    logits, labels = torch.randn(6, 3 * 4), torch.randint(0, 4, (6,))
    loss, right = losses_of(logits, labels, 4)
    for number in range(3):
        own = logits[:, 4 * number : 4 * number + 4]
        assert torch.allclose(loss[number], F.cross_entropy(own, labels))
        assert torch.allclose(right[number], (own.argmax(dim=1) == labels).float().mean())


def test_widths_are_the_protocols() -> None:
    """AlexNet on 227 pixels: the 9,600, 9,216, 9,600, 9,600, 9,216 of Split-Brain."""
    names = [f"conv{number}" for number in range(1, 6)]
    grids = fitting_grids(alexnet(1.0, 4, False, "lrn", 1), names, 227)
    assert [grids[name].grid for name in names] == [10, 6, 5, 5, 6]


def test_small_maps_are_taken_whole() -> None:
    grids = fitting_grids(alexnet(0.25, 1, True, "batch", 1), ["conv1", "conv5"], 28)
    assert grids["conv1"].grid == 20
    assert grids["conv5"].grid == 7


def test_it_is_rebuilt_from_its_description() -> None:
    method = LayerProbe(CONFIG, 10)
    model = method.build()
    net = build_described({"classes": []} | method.describe())
    net.load_state_dict(model.used.state_dict())
    x = torch.randn(2, 3, 28, 28)
    assert torch.allclose(net.eval()(x), model.used.eval()(x))
    assert net(x).shape == (2, 50)


def test_an_unknown_layer() -> None:
    with pytest.raises(ConfigError, match=r"no layer 'conv9'"):
        LayerProbe(override(CONFIG, {"layers": ("conv1", "conv9")}), 10).build()
