"""Convolutions on small maps: the same function, whichever way it is computed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.layers import StdConv2d
from torch import nn

from ssl_ray.nets import build_net, build_scene_net
from ssl_ray.nets.conv import SmallMapConv2d, StridedConv2d, mend, quicken
from ssl_ray.settings.nets import DetectorConfig, NetConfig, PyramidConfig


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("kernel", "stride", "bias"), [(3, 1, False), (3, 2, True), (1, 1, False), (1, 2, True)])
def test_it_equals_the_librarys(side: int, kernel: int, stride: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and all gradients, in float64; up to 2 x 2 pixels of output the library's kernel is not called."""
    torch.manual_seed(side)
    plain = nn.Conv2d(128, 130, kernel, stride, kernel // 2, bias=bias).double()
    other = copy.deepcopy(plain)
    quicken(other)
    assert type(other) is SmallMapConv2d
    calls = []
    convolve = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *given: calls.append(given) or convolve(*given))
    x = torch.randn(3, 128, side, side, dtype=torch.float64)
    results = []
    for module in (plain, other):
        given = x.clone().requires_grad_()
        out = module(given)
        out.square().sum().backward()
        results.append([out, given.grad, *(p.grad for p in module.parameters())])
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs)
    small = results[0][0].shape[2] <= 2
    assert len(calls) == (1 if small else 2)


def test_only_deep_plain_convolutions_are_changed() -> None:
    shapes = [(64, 128), (128, 64), (128, 128)]
    net = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in shapes), nn.Conv2d(128, 128, 3, groups=2),
                        nn.Conv2d(128, 128, 3, dilation=2), nn.Conv2d(128, 128, 5, padding=2))  # fmt: skip
    keys = list(net.state_dict())
    quicken(net)
    assert [type(module) is SmallMapConv2d for module in net] == [False, False, True, False, False, False]
    assert list(net.state_dict()) == keys


def test_nets_use_it() -> None:
    net = build_net(NetConfig(name="resnet:18"), 10)
    assert sum(isinstance(module, SmallMapConv2d) for module in net.modules()) > 8


@pytest.mark.parametrize("groups", [1, 32])
@pytest.mark.parametrize("kernel", [3, 5])
def test_gradients_on_one_pixel_are_right_in_bfloat16(kernel: int, groups: int) -> None:
    """The library's own were not, in nine of ten tries."""
    torch.manual_seed(0)
    for _ in range(10):
        conv = nn.Conv2d(32, 32, kernel, 2, kernel // 2, groups=groups)
        exact, x = copy.deepcopy(conv).double(), torch.randn(16, 32, 1, 1).to(memory_format=torch.channels_last)
        mend(conv)
        junk = [torch.full((10, 10**5), float("inf")) for _ in range(3)]
        del junk  # what may be found in memory
        with torch.autocast("cpu", torch.bfloat16):
            out = conv(x)
        out.float().square().sum().backward()
        exact(x.double()).square().sum().backward()
        for ours, theirs in zip(conv.parameters(), exact.parameters(), strict=True):
            assert ours.grad is not None
            assert theirs.grad is not None
            worst = (ours.grad.double() - theirs.grad).abs().max() / theirs.grad.abs().max()
            assert worst.item() < 0.05


def test_strided_convolutions_of_detectors_are_mended() -> None:
    head = DetectorConfig(pyramid=PyramidConfig(strides=(4, 8), width=16), levels=4, convs=1)
    net = build_scene_net(NetConfig(name="small_resnet", width=16, stem_stride=2), head, 3)
    assert all(type(conv) is StridedConv2d for conv in net.pyramid.smaller)  # type: ignore[union-attr]
    x = torch.randn(2, 32, 5, 5)
    conv = nn.Conv2d(32, 8, 3, 2, 1)
    expected = conv(x)
    mend(conv)
    assert torch.equal(conv(x), expected)
    keys = [nn.Conv2d(4, 4, 3, 2), nn.Conv2d(4, 4, 2, 2), nn.Conv2d(4, 4, 3, 1, 1)]
    for other in keys:  # these do not keep one pixel, or have no stride
        mend(other)
        assert type(other) is nn.Conv2d


@pytest.mark.parametrize("channels", [4, 8, 256])
def test_no_kernel_of_one_pixel_is_run_with_a_stride(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own backward pass corrupts memory with 8 channels, and hangs with fewer."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(channels, 256, 1, 2, bias=False))
    double = copy.deepcopy(net[0]).double()
    quicken(net)
    mend(net)
    strides = []
    convolve = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, w, b, stride, *rest: strides.append(stride) or convolve(x, w, b, stride, *rest))
    x = torch.randn(8, channels, 27, 28).to(memory_format=torch.channels_last)
    out = net(x)
    assert strides == [(1, 1)]
    out.square().sum().backward()
    monkeypatch.undo()
    expected = double(x.double())
    expected.square().sum().backward()
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net[0].weight.grad.double(), double.weight.grad, rtol=1e-3, atol=1e-1)


@pytest.mark.parametrize(
    "name", ["small_resnet", "resnet:50", "timm:resnet26", "timm:resnetv2_50", "timm:nf_resnet26", "torchvision:resnet50"]
)
def test_no_net_keeps_strided_kernels_of_one_pixel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that standardize their weights are subclasses of `nn.Conv2d`."""
    net = build_net(NetConfig(name=name, width=8), 10).eval()
    called = []
    convolve = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *given: called.append(given) or convolve(*given))
    with torch.no_grad():
        net(torch.zeros(1, 3, 64, 64))
    pixels = [given for given in called if given[1].shape[2:] == (1, 1)]
    assert len(pixels) >= 2
    assert all(max(given[3]) == 1 for given in pixels if not isinstance(given[3], int))


@pytest.mark.parametrize("padding", [0, "valid"])
@pytest.mark.parametrize("conv", [nn.Conv2d, StdConv2d])
def test_pixels_at_a_stride_give_what_a_strided_kernel_gives(conv: type[nn.Conv2d], padding: int | str) -> None:
    torch.manual_seed(5)
    module, x = conv(4, 6, 1, (2, 3), padding), torch.randn(2, 4, 9, 8)
    expected = module(x)
    mend(module)
    mend(module)  # nothing is left to do
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(copy.deepcopy(module)(x), expected)
