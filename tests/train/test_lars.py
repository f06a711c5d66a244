"""LARS against a transcription of the authors' update."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from ssl_ray.nets import build_net
from ssl_ray.settings.nets import NetConfig
from ssl_ray.settings.training import OptimConfig
from ssl_ray.train.lars import LARS
from ssl_ray.train.optim import make_optimizer


def test_the_update() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = LARS([weight], lr=1.0, momentum=0.9, weight_decay=0.1)
    velocity, expected = torch.zeros(2), weight.detach().clone()
    for rate, gradient in ((1.0, [1.0, 0.0]), (0.5, [0.0, -2.0]), (2.0, [1.0, 1.0])):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        change = torch.tensor(gradient) + 0.1 * expected
        trust = 0.001 * expected.norm() / change.norm()
        velocity = 0.9 * velocity + rate * trust * change
        expected = expected - velocity
        torch.testing.assert_close(weight.detach(), expected)


def test_it_adapts_without_weight_decay() -> None:
    """SimCLRv2 fine-tunes so: the length of a step does not follow the length of the gradient."""
    steps = []
    for length in (1.0, 1000.0):
        weight = nn.Parameter(torch.tensor([3.0, 4.0]))
        weight.grad = torch.tensor([length, 0.0])
        LARS([weight], lr=1.0, weight_decay=0.0).step()
        steps.append(torch.tensor([3.0, 4.0]) - weight.detach())
    torch.testing.assert_close(steps[0], steps[1], atol=1e-6, rtol=0)
    assert float(steps[0][0]) == pytest.approx(0.005, abs=1e-6)


def test_a_zero_weight_steps_by_its_gradient() -> None:
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.ones(3)
    LARS([weight], lr=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), -0.5))


def test_norms_and_biases_are_left_alone() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = make_optimizer(net, OptimConfig(name="lars", lr=0.1, weight_decay=0.5))
    adapted, plain = optimizer.param_groups
    assert [tuple(p.shape) for p in adapted["params"]] == [(4, 4)]
    assert len(plain["params"]) == 3
    assert (plain["adapt"], plain["weight_decay"]) == (False, 0.0)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = net[1].weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(before - net[1].weight.detach(), torch.full((4,), 0.1))


def test_its_state_is_in_the_state_dict() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = LARS([weight], lr=0.1)
    weight.grad = torch.ones(2)
    optimizer.step()
    other = LARS([weight], lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    torch.testing.assert_close(other.state[weight]["momentum"], optimizer.state[weight]["momentum"])


@pytest.mark.parametrize(("scaling", "expected"), [("none", 0.1), ("sqrt", 6.4), ("linear", 1.6)])
def test_scaling_of_the_rate(scaling: str, expected: float) -> None:
    assert OptimConfig(lr=0.1, scaling=scaling).peak(4096) == pytest.approx(expected)


def test_the_classifier_on_top_is_left_alone() -> None:
    """It begins at zero, where an adapted step would hardly move it."""
    net = build_net(NetConfig(width=4, zero_head=True), 3)
    adapted, plain, head, bias = make_optimizer(net, OptimConfig(name="lars", lr=0.1, weight_decay=0.5)).param_groups
    assert not any(p is net.head.weight for p in (*adapted["params"], *plain["params"]))
    assert len(bias["params"]) == 1
    assert bias["params"][0] is net.head.bias
    assert (bias["adapt"], bias["weight_decay"]) == (False, 0.0)
    assert len(head["params"]) == 1
    assert head["params"][0] is net.head.weight
    assert (head["adapt"], head["weight_decay"]) == (False, 0.5)
    assert any(p is net.head.weight for p in make_optimizer(net, OptimConfig(name="sgd")).param_groups[0]["params"])


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop", "lars"])
def test_the_classifier_may_have_a_rate_of_its_own(name: Literal["sgd", "adamw", "rmsprop", "lars"]) -> None:
    net = build_net(NetConfig(width=4), 3)
    groups = make_optimizer(net, OptimConfig(name=name, lr=0.1, weight_decay=0.5, head_factor=100.0)).param_groups
    faster = [p for group in groups if group.get("factor", 1.0) == 100 for p in group["params"]]
    assert {id(p) for p in faster} == {id(net.head.weight), id(net.head.bias)}
    everything = [id(p) for group in groups for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in net.parameters())


@pytest.mark.parametrize("everything", [False, True])
def test_weight_decay_of_norms_and_biases(everything: bool) -> None:
    net = build_net(NetConfig(width=4), 3)
    groups = make_optimizer(net, OptimConfig(weight_decay=0.5, decay_all=everything, nesterov=False)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {decay[id(p)] for p in net.parameters() if p.ndim > 1} == {0.5}
    assert {decay[id(p)] for p in net.parameters() if p.ndim == 1} == {0.5 if everything else 0.0}
    assert not groups[0]["nesterov"]
