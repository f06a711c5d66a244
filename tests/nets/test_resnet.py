"""SimCLRv2's encoder against the paper's table 1, and what fine-tuning keeps of the projection head."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_ray.config import override
from ssl_ray.errors import ConfigError
from ssl_ray.nets import build_encoder, build_net
from ssl_ray.nets.projection import ProjectionHead
from ssl_ray.nets.resnet import ResNet, SelectiveKernel
from ssl_ray.settings.nets import NetConfig, ProjectionConfig

# depth, multiplier, selective kernels, millions of parameters: table 1 of the paper has them rounded.
TABLE = [
    (50, 1, False, 23.51, 24), (50, 1, True, 35.22, 35), (50, 2, False, 93.91, 94), (50, 2, True, 140.31, 140),
    (101, 1, False, 42.50, 43), (101, 1, True, 64.66, 65), (101, 2, False, 169.77, 170), (101, 2, True, 257.13, 257),
    (152, 1, False, 58.14, 58), (152, 1, True, 88.94, 89), (152, 2, False, 232.25, 233), (152, 2, True, 353.40, 354),
    (152, 3, True, 794.70, 795),
]  # fmt: skip


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize(("depth", "multiplier", "selective", "exact", "rounded"), TABLE)
def test_parameters_of_the_table(depth: int, multiplier: int, selective: bool, exact: float, rounded: int) -> None:
    with torch.device("meta"):
        net = ResNet(depth, multiplier, selective)
    assert millions(net) == pytest.approx(exact, abs=0.006)
    assert abs(millions(net) - rounded) < 1
    assert net.num_features == 2048 * multiplier


@pytest.mark.parametrize(("features", "expected"), [(2048, 8.66), (4096, 34.10), (6144, 76.31)])
def test_parameters_of_the_head(features: int, expected: float) -> None:
    with torch.device("meta"):
        assert millions(ProjectionHead(features, ProjectionConfig())) == pytest.approx(expected, abs=0.006)


def test_head_has_no_bias_and_its_last_norm_no_shift() -> None:
    head = ProjectionHead(16, ProjectionConfig(layers=3, dim=8))
    assert all(layer.bias is None for layer in head.modules() if isinstance(layer, nn.Linear))
    norms = [layer for layer in head.modules() if isinstance(layer, nn.BatchNorm1d)]
    assert [norm.bias is None for norm in norms] == [False, False, True]
    out = head(torch.randn(64, 16))
    torch.testing.assert_close(out.mean(dim=0), torch.zeros(8), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("small", "side", "left"), [(True, 28, 4), (False, 64, 2)])
def test_strides(small: bool, side: int, left: int) -> None:
    net = ResNet(18, 0.125, small_image=small).eval()
    assert net.groups(net.stem(torch.zeros(1, 3, side, side))).shape[2] == left
    assert net(torch.zeros(2, 3, side, side)).shape == (2, net.num_features)


def test_selective_kernels_mix_two_streams() -> None:
    """A gate that prefers one stream gives that stream."""
    torch.manual_seed(0)
    unit = SelectiveKernel(4, 6, 1).eval()
    x = torch.randn(2, 4, 5, 5)
    first, second = unit.streams(x).chunk(2, dim=1)
    pushed = torch.zeros_like(unit.gate.weight)
    unit.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 32, 1), nn.ReLU())
    nn.init.zeros_(unit.squeeze[1].weight)
    nn.init.ones_(unit.squeeze[1].bias)
    pushed[:6] = 10.0
    unit.gate.weight.data = pushed
    torch.testing.assert_close(unit(x), first)
    unit.gate.weight.data = -pushed
    torch.testing.assert_close(unit(x), second)
    unit.gate.weight.data.zero_()
    torch.testing.assert_close(unit(x), (first + second) / 2)


def test_a_fresh_block_is_the_identity() -> None:
    net = ResNet(18, 0.125, small_image=True).eval()
    x = torch.rand(1, 8, 6, 6)
    torch.testing.assert_close(net.groups[0][1](x), x)


def test_selective_nets_pool_their_shortcuts() -> None:
    net = ResNet(50, 0.125, selective=True, small_image=True)
    first = net.groups[0][0].shortcut
    x = torch.rand(1, 8, 4, 4)
    first.conv.weight.data = torch.eye(32)[:, :8, None, None].clone()
    first.eval()
    out = first(x)[:, :8] * (1 + 1e-5) ** 0.5
    torch.testing.assert_close(out[:, :, 0, 0], x[:, :, :2, :2].mean(dim=(2, 3)))
    torch.testing.assert_close(out[:, :, 3, 3], x[:, :, 3, 3], msg="what is padded does not count")


class TestFineTuning:
    net = NetConfig(name="resnet:18", multiplier=0.125, small_image=True)
    x = torch.randn(4, 3, 28, 28)

    def test_it_begins_at_the_head_s_first_layer(self) -> None:
        torch.manual_seed(0)
        encoder = build_encoder(self.net, ProjectionConfig(layers=3, dim=8)).eval()
        tuned = build_net(override(self.net, {"projection": 1, "zero_head": True}), 10).eval()
        tuned.begin_with(encoder.state_dict())
        expected = encoder.projection.layers[0](encoder.backbone(self.x))  # type: ignore[index, union-attr]
        torch.testing.assert_close(tuned.neck(tuned.backbone(self.x)), expected)
        assert not tuned(self.x).any(), "the classifier begins at zero"

    def test_from_the_backbone(self) -> None:
        encoder = build_encoder(self.net, ProjectionConfig()).eval()
        tuned = build_net(self.net, 10).eval()
        tuned.begin_with(encoder.state_dict())
        torch.testing.assert_close(tuned.features(self.x), encoder.features(self.x))

    def test_another_architecture_is_named(self) -> None:
        encoder = build_encoder(override(self.net, {"multiplier": 0.25}), ProjectionConfig())
        with pytest.raises(ConfigError, match=r"stem.0.0.weight has another shape.*choose the net"):
            build_net(self.net, 10).begin_with(encoder.state_dict())
        shallow = build_encoder(self.net, ProjectionConfig(layers=1))
        with pytest.raises(ConfigError, match="projection head"):
            build_net(override(self.net, {"projection": 2}), 10).begin_with(shallow.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet:20"}, "18, 34, 50"),
        ({"name": "resnet:18", "selective_kernels": True}, "belongs to resnet:50"),
        ({"name": "timm:resnet50", "selective_kernels": True}, "belongs to resnet:50"),
    ],
)
def test_nets_that_there_are_not(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(NetConfig(), settings)
