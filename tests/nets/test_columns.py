"""AlexNet, VGG and the context-free network against the figures of the papers and of the released code."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ssl_ray.errors import ConfigError
from ssl_ray.nets import build_net, build_puzzle, first_layers
from ssl_ray.nets.columns import alexnet, vgg
from ssl_ray.nets.layers import layer_outputs
from ssl_ray.settings.nets import LayerConfig, NetConfig, PuzzleHeadConfig

ALEXNET = NetConfig(name="alexnet", stem_stride=2, norm="lrn")
WHOLE = LayerConfig(name="pool5", grid=None)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class TestAlexNet:
    def test_convolutions_have_the_papers_parameters(self) -> None:
        assert parameters(alexnet(1.0, 2, False, "lrn", 1)) == 2_334_080

    @pytest.mark.parametrize(("tile", "sides"), [(64, (27, 13, 6, 3)), (75, (33, 16, 8, 4))])
    def test_maps_of_a_tile_are_caffes(self, tile: int, sides: tuple[int, ...]) -> None:
        net = alexnet(1.0, 2, False, "lrn", 1).eval()
        names = ["conv1", "pool1", "pool2", "pool5"]
        found = layer_outputs(net, torch.zeros(1, 3, tile, tile), names)
        assert tuple(found[name].shape[2] for name in names) == sides
        assert found["pool5"].flatten(1).shape[1] == {64: 2304, 75: 4096}[tile]

    @pytest.mark.parametrize("side", [6, 9, 15, 28, 64])
    def test_small_images_pass(self, side: int) -> None:
        net = alexnet(0.25, 1, True, "batch", 1).eval()
        assert net(torch.zeros(2, 3, side, side)).shape == (2, 64)

    def test_conv1_keeps_its_weights_at_another_stride(self) -> None:
        slow, fast = (alexnet(0.25, stride, False, "lrn", 1) for stride in (2, 4))
        fast.load_state_dict(slow.state_dict())
        assert slow.conv1[0].stride == (2, 2)  # type: ignore[index, union-attr]
        assert fast.conv1[0].stride == (4, 4)  # type: ignore[index, union-attr]

    def test_fully_connected_layers_are_the_classifiers(self) -> None:
        net = build_net(NetConfig(name="alexnet", stem_stride=4, norm="lrn", grid=6, hidden=(4096, 4096), dropout=0.5), 1000)
        # Caffe's AlexNet: 61 million, of which groups of two leave out 0.8.
        assert parameters(net) == 2_334_080 + (9216 * 4096 + 4096) + (4096 * 4096 + 4096) + (4096 * 1000 + 1000)
        assert parameters(net) == 60_965_224
        assert not any(key.startswith("backbone") and "fc" in key for key in net.state_dict())

    def test_what_belongs_to_the_first_layers(self) -> None:
        net = alexnet(0.25, 1, True, "batch", 1)
        kept = first_layers(net, 2)
        assert {key.split(".")[0] for key in kept} == {"conv1", "conv2"}
        assert {key for key in net.state_dict() if key.startswith(("conv1.", "conv2."))} == kept

    def test_only_the_first_layers_are_taken_over(self) -> None:
        config = NetConfig(name="alexnet", multiplier=0.25, small_image=True)
        source, fresh = build_net(config, 7), build_net(config, 3)
        before = {key: value.clone() for key, value in fresh.state_dict().items()}
        with torch.no_grad():
            for buffer in source.buffers():
                buffer.add_(1)
        fresh.begin_with(source.state_dict(), fresh_head=True, layers=2)
        for key, value in fresh.state_dict().items():
            taken = key.startswith(("backbone.conv1", "backbone.conv2"))
            expected = source.state_dict()[key] if taken else before[key]
            assert torch.equal(value, expected), key


class TestVGG:
    def test_sixteen_layers(self) -> None:
        net = vgg(16, 1.0, "none", 1)
        assert parameters(net) == 14_714_688
        assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) == 13
        found = layer_outputs(net.eval(), torch.zeros(1, 3, 64, 64), ["conv4", "pool5"])
        assert found["conv4"].shape == (1, 512, 8, 8)
        assert found["pool5"].shape == (1, 512, 2, 2)

    @pytest.mark.parametrize("side", [6, 9, 28])
    def test_small_tiles_pass(self, side: int) -> None:
        assert vgg(16, 0.25, "batch", 1).eval()(torch.zeros(2, 3, side, side)).shape == (2, 128)


class TestContextFree:
    def test_the_released_network_has_46_million_parameters(self) -> None:
        net = build_puzzle(ALEXNET, PuzzleHeadConfig(layer=WHOLE), tile=64, count=1000)
        expected = 2_334_080 + (2304 * 1024 + 1024) + (9 * 1024 * 4096 + 4096) + (4096 * 1000 + 1000)
        assert parameters(net) == expected
        assert round(expected / 1e6, 1) == 46.5

    def test_the_papers_network_has_27_million(self) -> None:
        """75 pixel tiles, fc6 of 512, 1,000 outputs: 27.5 million by the paper, 27.41 by its sizes."""
        net = build_puzzle(ALEXNET, PuzzleHeadConfig(layer=WHOLE, tile=512), tile=75, count=1000)
        assert abs(parameters(net) - 27.41e6) < 0.05e6

    @pytest.mark.parametrize("name", ["small_resnet", "resnet:18", "vgg:11", "timm:resnet18", "torchvision:resnet18"])
    def test_around_any_backbone(self, name: str) -> None:
        multiplier = {"resnet:18": 0.125, "vgg:11": 0.125}.get(name, 1.0)
        net = build_puzzle(
            NetConfig(name=name, multiplier=multiplier), PuzzleHeadConfig(tile=8, hidden=16, norm=True), tile=12, count=5
        )
        features, logits = net(torch.randn(4, 9, 3, 12, 12))
        assert logits.shape == (4, 5)
        assert features.shape[0] == 4

    def test_every_tile_passes_the_same_weights_and_the_order_counts(self) -> None:
        net = build_puzzle(
            NetConfig(name="vgg:11", multiplier=0.125), PuzzleHeadConfig(tile=8, hidden=16, dropout=0.0), tile=6, count=5
        )
        net.eval()
        tiles = torch.randn(2, 9, 3, 6, 6)
        turned = tiles.flip(1)
        assert torch.allclose(net.fc6(net.backbone(tiles[:, 0])), net.fc6(net.backbone(turned[:, 8])), atol=1e-6)
        assert not torch.allclose(net(tiles)[1], net(turned)[1])

    def test_what_gives_nothing_does_not_learn(self) -> None:
        """Else two workers would wait for its gradients."""
        layer = PuzzleHeadConfig(tile=8, hidden=16, layer=LayerConfig(name="conv4"))
        net = build_puzzle(NetConfig(name="alexnet", multiplier=0.125, small_image=True), layer, tile=6, count=5)
        fixed = {name.split(".")[0] for name, p in net.backbone.named_parameters() if not p.requires_grad}
        assert fixed == {"conv5"}

    @pytest.mark.parametrize(("name", "words"), [("alexnet", "Kernel size"), ("timm:vit_tiny_patch16_224", "height")])
    def test_a_net_that_does_not_take_such_tiles(self, name: str, words: str) -> None:
        with pytest.raises(ConfigError, match=rf"does not take tiles of 6 pixels \(.*{words}.*\); take larger images"):
            build_puzzle(NetConfig(name=name), PuzzleHeadConfig(), tile=6, count=5)


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"name": "vgg:12"}, "vgg:DEPTH has the depths 11, 13, 16, 19"),
            ({"name": "alexnets"}, "alexnet, vgg:DEPTH"),
            ({"name": "vgg:16", "norm": "lrn"}, "net.norm=lrn belongs to alexnet"),
            ({"name": "alexnet", "stochastic_depth": 0.1}, "alexnet has no stochastic depth"),
            ({"name": "alexnet", "hidden": (8,), "projection": 1}, "exclude each other"),
        ],
    )
    def test_messages(self, settings: dict[str, object], words: str) -> None:
        with pytest.raises(ValidationError, match=words):
            NetConfig.model_validate(settings)
