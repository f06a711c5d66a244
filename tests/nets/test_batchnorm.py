"""Batch norms in place of a net's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ssl_ray.nets.batchnorm import split, synchronise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("replace", [lambda net: synchronise(net, torch.device("cpu")), lambda net: split(net, 2)])
def test_a_replaced_norm_keeps_its_dtype(dtype: torch.dtype, replace: object) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).to(dtype)
    with torch.no_grad():
        net[1].weight.uniform_()
        net[1].running_mean.uniform_()
    expected, changed = copy.deepcopy(net).eval(), replace(net).eval()  # type: ignore[operator]
    x = torch.randn(2, 3, 5, 5, dtype=dtype)
    assert type(changed[1]) is not nn.BatchNorm2d
    assert all(value.dtype == dtype for value in changed.state_dict().values() if value.is_floating_point())
    assert torch.equal(changed(x), expected(x))
