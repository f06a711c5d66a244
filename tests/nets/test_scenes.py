"""Maps of backbones, pyramids, detectors and segmenters; their losses against a slow transcription."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from ssl_ray.config import override
from ssl_ray.errors import ConfigError
from ssl_ray.losses.boxes import focal_loss, match_anchors, retina_losses
from ssl_ray.nets import build_described_scene_net, build_net, build_scene_net
from ssl_ray.nets.maps import Maps
from ssl_ray.nets.noise import NoiseSource
from ssl_ray.nets.pyramid import CELLS, NASFPN
from ssl_ray.nets.scenes import Detector, Segmenter, merged, soft_nms
from ssl_ray.settings.nets import BoxLossConfig, DetectorConfig, NetConfig, PyramidConfig, SegmenterConfig

SMALL = NetConfig(name="small_resnet", width=16, stem_stride=2)
HEAD = DetectorConfig(pyramid=PyramidConfig(strides=(4, 8), width=16, norm="group"), levels=3, convs=1)


def detector(head: DetectorConfig = HEAD, net: NetConfig = SMALL, classes: int = 4) -> Detector:
    torch.manual_seed(0)
    found = build_scene_net(net, head, classes)
    assert isinstance(found, Detector)
    return found


def some_targets() -> list[dict[str, torch.Tensor]]:
    return [
        {"boxes": torch.tensor([[4.0, 4, 24, 28], [30, 10, 60, 50]]), "labels": torch.tensor([1, 3])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
        {"boxes": torch.tensor([[10.0, 30, 40, 62]]), "labels": torch.tensor([0])},
    ]


class TestMaps:
    @pytest.mark.parametrize(
        ("name", "strides", "channels"),
        [
            ("small_resnet", (2, 4, 8), [16, 32, 64]),
            ("resnet:18", (8, 16, 32), [32, 64, 128]),
            ("torchvision:resnet18", (4, 8, 16, 32), [64, 128, 256, 512]),
            ("timm:tf_efficientnet_lite0", (8, 16, 32), [40, 112, 320]),
            ("torchvision:mobilenet_v3_small", (8, 16), [24, 48]),
        ],
    )
    def test_any_backbone_gives_maps_of_a_stride(self, name: str, strides: tuple[int, ...], channels: list[int]) -> None:
        config = override(SMALL, {"name": name, "multiplier": 0.25 if name.startswith("resnet") else 1.0})
        maps = Maps(build_net(config, 3).backbone, strides)
        assert maps.channels == channels
        maps.eval()
        found = maps(torch.randn(2, 3, 64, 64))
        assert [tuple(item.shape) for item in found] == [
            (2, c, 64 // s, 64 // s) for c, s in zip(channels, strides, strict=True)
        ]

    def test_a_map_is_the_output_of_its_stage_and_not_of_an_expansion(self) -> None:
        net = build_net(override(SMALL, {"name": "torchvision:resnet18"}), 3).backbone.eval()
        maps, x = Maps(net, (8,)), torch.randn(1, 3, 64, 64)
        expected = net.layer2(net.layer1(net.maxpool(F.relu(net.bn1(net.conv1(x))))))  # type: ignore[operator,arg-type]
        assert torch.equal(maps(x)[0], expected)

    def test_what_no_map_needs_does_not_learn(self) -> None:
        maps = Maps(build_net(override(SMALL, {"name": "torchvision:resnet18"}), 3).backbone, (8, 16))
        learns = {name.split(".")[1] for name, p in maps.named_parameters() if p.requires_grad}
        assert learns == {"conv1", "bn1", "layer1", "layer2", "layer3"}

    def test_trying_out_changes_no_statistics(self) -> None:
        backbone = build_net(SMALL, 3).backbone
        before = {key: value.clone() for key, value in backbone.state_dict().items()}
        Maps(backbone, (4, 8))
        assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
        assert backbone.training
        assert all(p.grad is None for p in backbone.parameters())

    def test_a_stride_that_is_not_there_is_named(self) -> None:
        with pytest.raises(ConfigError, match="no map of stride 16, but of 2, 4, 8"):
            Maps(build_net(SMALL, 3).backbone, (8, 16))


class TestInits:
    """Arms differ in where the backbone begins, and in nothing else."""

    def test_a_classifier_gives_its_backbone(self) -> None:
        torch.manual_seed(1)
        start = build_net(SMALL, 7)
        net = detector()
        fresh = {key: value.clone() for key, value in net.state_dict().items()}
        net.begin_with(start.state_dict())
        for key, value in net.state_dict().items():
            inner = key.removeprefix("maps.backbone.")
            if inner != key:
                assert torch.equal(value, start.backbone.state_dict()[inner])
            else:
                assert torch.equal(value, fresh[key]), key

    def test_a_detector_gives_all_or_its_backbone_alone(self) -> None:
        torch.manual_seed(2)
        start = build_scene_net(SMALL, HEAD, 4)
        whole, part = detector(), detector()
        head = part.head.state_dict()["classification_head.cls_logits.weight"].clone()
        whole.begin_with(start.state_dict())
        part.begin_with(start.state_dict(), fresh_head=True)
        assert all(torch.equal(value, start.state_dict()[key]) for key, value in whole.state_dict().items())
        assert torch.equal(part.head.state_dict()["classification_head.cls_logits.weight"], head)
        assert torch.equal(next(part.backbone.parameters()), next(start.backbone.parameters()))
        with pytest.raises(ConfigError, match="does not fit the net"):
            detector(classes=5).begin_with(start.state_dict())

    def test_the_same_norms_and_layers_learn_whatever_the_start(self) -> None:
        def shape(init: str) -> tuple[list[str], list[str]]:
            config = NetConfig(name="timm:tf_efficientnet_lite0", init=init)  # type: ignore[arg-type]
            net = build_scene_net(config, override(HEAD, {"pyramid.strides": (8, 16)}), 4)
            return (
                [name for name, p in net.named_parameters() if p.requires_grad],
                [type(module).__name__ for module in net.modules()],
            )

        assert shape("random") == shape("imagenet")


class TestDetector:
    @pytest.mark.parametrize("kind", ["retinanet", "fcos"])
    def test_every_weight_that_learns_has_a_gradient(self, kind: str) -> None:
        net = detector(override(HEAD, {"kind": kind, "pyramid.width": 32}))
        x = torch.randn(3, 3, 64, 64)
        parts, count = net.losses(net(x), x, some_targets())
        assert int(count) > 0
        torch.stack(list(parts.values())).sum().backward()
        missing = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing

    def test_anchors_cover_their_strides(self) -> None:
        net = detector()
        x = torch.randn(1, 3, 64, 64)
        out, anchors = net(x), net.places(x)
        assert [len(level) for level in anchors] == [9 * 16**2, 9 * 8**2, 9 * 4**2]
        assert out["cls_logits"].shape == (1, sum(len(level) for level in anchors), 4)
        for level, stride in zip(anchors, (4, 8, 16), strict=True):
            area = (level[:, 2:] - level[:, :2]).prod(dim=1).sqrt()
            assert float(area.min()) == pytest.approx(4 * stride, rel=0.1)
            assert float(area.max()) == pytest.approx(4 * stride * 2 ** (2 / 3), rel=0.1)

    def test_anchors_of_other_sizes_and_shapes(self) -> None:
        net = detector(override(HEAD, {"anchor_size": 2.5, "anchor_scales": 2, "anchor_ratios": (1.0, 4.0)}))
        x = torch.randn(1, 3, 64, 64)
        out, anchors = net(x), net.places(x)
        assert out["cls_logits"].shape == (1, 4 * (16**2 + 8**2 + 4**2), 4)
        sides = (anchors[0][:4, 2:] - anchors[0][:4, :2]).tolist()  # of the first place
        for large in (10, 10 * 2**0.5):
            for high in (1.0, 4.0):
                expected = pytest.approx([large / high**0.5, large * high**0.5], abs=1.01)  # torchvision's are whole pixels
                assert any(expected == pair for pair in sides), (large, high)
        with pytest.raises(ConfigError, match="at least one"):
            override(HEAD, {"anchor_ratios": ()})

    def test_norms_of_the_head_know_their_level(self) -> None:
        """Settled statistics give in use what they gave in training, on every level, though the levels differ."""
        net = detector(override(HEAD, {"pyramid.norm": "batch", "convs": 2}))
        maps = [scale * torch.randn(8, 16, side, side) for scale, side in ((1.0, 16), (5.0, 8), (20.0, 4))]

        def said() -> list[torch.Tensor]:
            return list(net.head.classification_head(maps).split([9 * 16**2, 9 * 8**2, 9 * 4**2], dim=1))  # type: ignore[operator]

        with torch.no_grad():
            for _ in range(150):  # of the first statistics, a millionth is left
                expected = said()
            net.eval()
            for before, after in zip(expected, said(), strict=True):
                assert after.std().item() == pytest.approx(before.std().item(), rel=0.05)
            shared = detector(override(HEAD, {"pyramid.norm": "batch", "convs": 2, "level_norms": False}))
        assert len(list(net.head.parameters())) > len(list(shared.head.parameters()))

    def test_a_pass_that_broke_off_does_not_shift_the_levels(self) -> None:
        net, x = detector(override(HEAD, {"pyramid.norm": "batch"})).eval(), torch.randn(1, 3, 64, 64)
        expected = net(x)["cls_logits"]
        tower = net.head.classification_head.conv  # type: ignore[union-attr]
        tower(torch.randn(1, 16, 16, 16))  # type: ignore[operator]
        assert torch.equal(net(x)["cls_logits"], expected)

    def test_smaller_maps_are_normed_too(self) -> None:
        net = detector(override(HEAD, {"pyramid.norm": "batch"})).train()
        with torch.no_grad():
            levels = net.pyramid(net.maps(100 * torch.randn(8, 3, 64, 64)))  # type: ignore[operator]
        assert all(level.std().item() == pytest.approx(1.0, abs=0.2) for level in levels)

    @pytest.mark.parametrize("changes", [{"kind": "fcos", "pyramid.width": 32, "pyramid.norm": "group"}, {"soft_nms": 0.3}])
    def test_other_answers(self, changes: dict[str, object]) -> None:
        """FCOS, and Soft-NMS: boxes in the image, in falling order, no more than are wanted."""
        net = detector(override(HEAD, {"score": 0.001, "boxes": 7, **changes})).eval()
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            for item in net.boxes(net(x), x):
                assert 0 < len(item["boxes"]) <= 7
                assert bool((item["boxes"] >= 0).all() and (item["boxes"] <= 64).all())
                assert bool((item["scores"].diff() <= 0).all())

    def test_scores_fall_once_where_scales_are_put_together(self) -> None:
        net = detector(override(HEAD, {"score": 0.001, "soft_nms": 0.3})).eval()
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            out = net(x)
            [once], [raw] = net.boxes(out, x), net.boxes(out, x, alone=False)
        both = merged([{**raw, "finite": torch.tensor(True)}, {**{k: v[:0] for k, v in raw.items()}, "finite": torch.tensor(True)}],
                      net.config)  # fmt: skip
        assert torch.allclose(both["scores"], once["scores"])

    def test_anchors_lie_a_stride_apart_whatever_the_side(self) -> None:
        net, x = detector(), torch.randn(1, 3, 100, 100)
        net(x)
        for level, stride in zip(net.places(x), (4, 8, 16), strict=True):
            centres = ((level[:, 0] + level[:, 2]) / 2).unique()
            assert centres.diff().unique().tolist() == [stride]

    @pytest.mark.parametrize("counted", [False, True])
    def test_focal_loss_is_torchvisions(self, counted: bool) -> None:
        x = (4 * torch.randn(2, 30, 5, dtype=torch.float64)).requires_grad_()
        there = (torch.tensor([0, 0, 1]), torch.tensor([3, 7, 7]), torch.tensor([1, 1, 4]))
        keep = torch.rand(2, 30) < 0.7
        keep[there[:2]] = True
        wanted = torch.zeros_like(x).index_put(there, torch.ones(3, dtype=torch.float64))
        chosen = keep if counted else torch.ones_like(keep)
        expected = sigmoid_focal_loss(x[chosen], wanted[chosen], alpha=0.25, gamma=1.5, reduction="sum")
        found = focal_loss(x, there, keep if counted else None, 0.25, 1.5)
        assert found.item() == pytest.approx(expected.item(), rel=1e-9)
        assert torch.allclose(*(torch.autograd.grad(value, x)[0] for value in (found, expected)), atol=1e-9)

    @pytest.mark.parametrize("corners", ["huber", "giou"])
    def test_loss_equals_a_slow_transcription(self, corners: str) -> None:
        """Focal loss and the loss of the corners, anchor by anchor."""
        config = BoxLossConfig(corners=corners, unmatch=0.4)  # type: ignore[arg-type]
        net = detector(override(HEAD, {"loss": config}))
        x, targets = torch.randn(3, 3, 64, 64), some_targets()
        out = net(x)
        parts, count = net.losses(out, x, targets)
        anchors = torch.cat(net.places(x))
        focal = box = 0.0
        total = 0
        for image, target in enumerate(targets):
            [match] = match_anchors(anchors, [target], config)
            for a, m in enumerate(match.tolist()):
                if m == -2:
                    continue
                for c in range(4):
                    p = torch.sigmoid(out["cls_logits"][image, a, c]).item()
                    if m >= 0 and int(target["labels"][m]) == c:
                        focal += -0.25 * (1 - p) ** 1.5 * math.log(p)
                    else:
                        focal += -0.75 * p**1.5 * math.log(1 - p)
                if m >= 0:
                    total += 1
                    box += _corner_loss(out["bbox_regression"][image, a].tolist(), anchors[a].tolist(), target["boxes"][m].tolist(),
                                        corners)  # fmt: skip
        assert int(count) == total > 0
        assert parts["classes"].item() == pytest.approx(focal, rel=1e-4)
        assert parts["corners"].item() == pytest.approx(50 * box / (4 if corners == "huber" else 1), rel=1e-4)

    def test_corner_loss_is_the_mean_over_four_corners(self) -> None:
        """One anchor and one box, against the released loss: 0.0547, divided by the positives plus one."""
        from torchvision.models.detection._utils import BoxCoder

        anchors = torch.tensor([[0.0, 0.0, 32.0, 32.0]])
        targets = [{"boxes": torch.tensor([[1.0, 2.0, 35.0, 31.0]]), "labels": torch.tensor([0])}]
        outputs = {"cls_logits": torch.zeros(1, 1, 1), "bbox_regression": torch.zeros(1, 1, 4)}
        parts, count = retina_losses(outputs, anchors, targets, BoxCoder((1.0, 1.0, 1.0, 1.0)), BoxLossConfig())
        assert count.item() == 1
        assert parts["corners"].item() / (count.item() + 1) == pytest.approx(0.0547, abs=1e-4)

    @pytest.mark.parametrize(("rule", "expected"), [("released", [0, 1]), ("torchvision", [0, 0])])
    def test_every_box_gets_the_anchor_that_overlaps_it_most(self, rule: str, expected: list[int]) -> None:
        anchors = torch.tensor([[0.0, 0, 32, 32], [16, 0, 48, 32]])
        boxes = torch.tensor([[0.0, 0, 34, 32], [36, 8, 48, 20]])
        config = BoxLossConfig(forced=rule)  # type: ignore[arg-type]
        [match] = match_anchors(anchors, [{"boxes": boxes, "labels": torch.tensor([0, 0])}], config)
        assert match.tolist() == expected

    def test_a_box_that_no_anchor_overlaps_is_forced_on_none(self) -> None:
        anchors = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8]])
        boxes = torch.tensor([[20.0, 20, 30, 30], [0, 0, 8, 4], [0, 4, 8, 8]])
        [match] = match_anchors(anchors, [{"boxes": boxes, "labels": torch.zeros(3, dtype=torch.int64)}], BoxLossConfig())
        assert match.tolist() == [1, -1]

    def test_an_image_without_objects_is_background(self) -> None:
        net = detector()
        x = torch.randn(1, 3, 64, 64)
        parts, count = net.losses(net(x), x, [some_targets()[1]])
        assert int(count) == 0
        assert parts["corners"].item() == 0.0
        assert parts["classes"].item() > 0

    def test_a_net_that_knows_says_the_boxes(self) -> None:
        """Logits set by hand: what comes out is what was put in."""
        net = detector()
        x = torch.randn(1, 3, 64, 64)
        out = {key: torch.zeros_like(value) for key, value in net(x).items()}
        out["cls_logits"] -= 10
        anchors = torch.cat(net.places(x))
        inside = ((anchors[:, :2] >= 0) & (anchors[:, 2:] <= 64)).all(dim=1).nonzero()[:, 0]
        first, second = int(inside[0]), int(inside[-1])
        out["cls_logits"][0, first, 2], out["cls_logits"][0, second, 1] = 3.0, 1.0
        [said] = net.boxes(out, x)
        assert said["labels"].tolist() == [2, 1]
        assert torch.allclose(said["boxes"], anchors[[first, second]], atol=1e-4)
        assert said["scores"].tolist() == pytest.approx([1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-1))])

    def test_rebuilt_from_its_description(self) -> None:
        net = detector()
        description = {"task": "detection", "net": SMALL.model_dump(mode="json"), "head": HEAD.model_dump(mode="json"),
                       "num_classes": 4}  # fmt: skip
        other = build_described_scene_net(description)
        other.load_state_dict(net.state_dict())
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(net.eval()(x)["cls_logits"], other.eval()(x)["cls_logits"])

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"levels": 1}, "fewer than pyramid.strides"),
            ({"pyramid.strides": (4, 12)}, "each twice the one before"),
            ({"kind": "fcos"}, "multiple of 32"),
            ({"kind": "fcos", "pyramid.width": 32, "loss.gamma": 5.0}, "losses of its own"),
            ({"convs": -1}, "greater than or equal to 0"),
            ({"pyramid.name": "nas-fpn"}, "nas-fpn has 5 levels"),
        ],
    )
    def test_settings_that_do_not_fit(self, changes: dict[str, object], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            override(HEAD, changes)


def _corner_loss(said: list[float], anchor: list[float], true: list[float], kind: str) -> float:
    ax, ay = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
    aw, ah = anchor[2] - anchor[0], anchor[3] - anchor[1]
    if kind == "huber":
        tx, ty = (true[0] + true[2]) / 2, (true[1] + true[3]) / 2
        wanted = [(tx - ax) / aw, (ty - ay) / ah, math.log((true[2] - true[0]) / aw), math.log((true[3] - true[1]) / ah)]
        loss = 0.0
        for s, w in zip(said, wanted, strict=True):
            d = abs(s - w)
            loss += 0.5 * d * d if d <= 0.1 else 0.1 * (d - 0.05)
        return loss
    x, y, w, h = ax + said[0] * aw, ay + said[1] * ah, aw * math.exp(said[2]), ah * math.exp(said[3])
    box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    inner = max(0.0, min(box[2], true[2]) - max(box[0], true[0])) * max(0.0, min(box[3], true[3]) - max(box[1], true[1]))
    union = w * h + (true[2] - true[0]) * (true[3] - true[1]) - inner
    hull = (max(box[2], true[2]) - min(box[0], true[0])) * (max(box[3], true[3]) - min(box[1], true[1]))
    return 1 - (inner / union - (hull - union) / hull)


class TestNMS:
    BOXES = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40], [0, 0, 10, 10]])

    def test_soft_nms_lowers_what_overlaps_in_its_class(self) -> None:
        found = soft_nms(
            {"boxes": self.BOXES, "labels": torch.tensor([1, 1, 1, 2]), "scores": torch.tensor([0.9, 0.8, 0.7, 0.6])},
            0.3,
            0.05,
            10,
        )
        overlap = 90 / 110
        lowered = 0.8 * math.exp(-(overlap**2) / 0.3)
        assert found["scores"].tolist() == pytest.approx([0.9, 0.7, 0.6, lowered])
        assert found["labels"].tolist() == [1, 1, 2, 1]

    def test_soft_nms_ends_at_the_least_score_and_the_most_boxes(self) -> None:
        one = {"boxes": self.BOXES, "labels": torch.tensor([1, 1, 1, 2]), "scores": torch.tensor([0.9, 0.8, 0.7, 0.6])}
        assert len(soft_nms(one, 0.3, 0.5, 10)["scores"]) == 3
        assert len(soft_nms(one, 0.3, 0.05, 2)["scores"]) == 2

    def test_answers_of_several_scales_become_one(self) -> None:
        part = {"boxes": self.BOXES[:3], "labels": torch.tensor([1, 2, 1]), "scores": torch.tensor([0.9, 0.8, 0.7]),
                "finite": torch.tensor(True)}  # fmt: skip
        both = merged([part, {**part, "scores": part["scores"] - 0.1}], HEAD)
        assert both["scores"].tolist() == pytest.approx([0.9, 0.8, 0.7])
        assert bool(both["finite"])
        assert not bool(merged([part, {**part, "finite": torch.tensor(False)}], HEAD)["finite"])


class TestNASFPN:
    def test_cells_by_hand(self) -> None:
        """One repeat with convolutions and norms that change nothing, against the cells written out."""
        net = NASFPN([4] * 5, 4, "none", 1)
        for cell in net.cells[0]:  # type: ignore[union-attr]
            torch.nn.init.dirac_(cell[0].weight)
            torch.nn.init.zeros_(cell[0].bias)
        for lateral in net.lateral:
            torch.nn.init.dirac_(lateral[0].weight)  # type: ignore[index]
            torch.nn.init.zeros_(lateral[0].bias)  # type: ignore[index]
        torch.manual_seed(3)
        p3, p4, p5, p6, p7 = maps = [torch.rand(2, 4, 32 // 2**i, 32 // 2**i) for i in range(5)]

        def up(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
            return F.interpolate(x, size=like.shape[2:], mode="nearest")

        def down(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
            return F.adaptive_max_pool2d(x, like.shape[2:])

        def gate(deep: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
            return deep + fine * torch.sigmoid(deep.amax(dim=(2, 3), keepdim=True))

        a = gate(up(p6, p4), p4)
        b = p4 + a
        o3 = p3 + up(b, p3)
        o4 = b + down(o3, p4)
        o5 = gate(down(o4, p5), down(o3, p5)) + p5
        o7 = gate(down(o5, p7), down(b, p7)) + p7
        o6 = gate(up(o7, p6), down(o5, p6))
        for found, expected in zip(net(maps), (o3, o4, o5, o6, o7), strict=True):
            assert torch.allclose(found, expected, atol=1e-5)

    def test_missing_levels_are_made_from_the_last(self) -> None:
        net = NASFPN([3, 6], 8, "batch", 2)
        found = net([torch.randn(2, 3, 32, 32), torch.randn(2, 6, 16, 16)])
        assert [tuple(item.shape[1:]) for item in found] == [(8, 32, 32), (8, 16, 16), (8, 8, 8), (8, 4, 4), (8, 2, 2)]
        assert len(CELLS) == 7


class TestSegmenter:
    @pytest.mark.parametrize(
        "head",
        [
            SegmenterConfig(pyramid=PyramidConfig(strides=(2, 4, 8), width=16, norm="group"), convs=1),
            SegmenterConfig(kind="deeplabv3", pyramid=PyramidConfig(strides=(4, 8))),
            SegmenterConfig(pyramid=PyramidConfig(name="nas-fpn", strides=(2, 4, 8), width=8, repeats=1), convs=1),
        ],
        ids=["fpn", "deeplabv3", "nas-fpn"],
    )
    def test_a_class_for_every_pixel_and_a_gradient_for_every_weight(self, head: SegmenterConfig) -> None:
        net = build_scene_net(SMALL, head, 5)
        assert isinstance(net, Segmenter)
        x = torch.randn(2, 3, 64, 64)
        out = net(x)
        assert out.shape == (2, 5, 64, 64)
        target = torch.randint(0, 5, (2, 64, 64)).to(torch.uint8)
        target[0, :10] = 255
        parts, count = net.losses(out, x, target)
        assert int(count) == 2 * 64 * 64 - 640
        parts["pixels"].backward()
        assert not [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]

    def test_pixels_without_a_class_do_not_count(self) -> None:
        net = build_scene_net(SMALL, SegmenterConfig(pyramid=PyramidConfig(strides=(4, 8), width=8), convs=0), 3)
        x = torch.randn(1, 3, 32, 32)
        out = net(x)
        target = torch.full((1, 32, 32), 255, dtype=torch.uint8)
        target[0, 4, 7] = 2
        parts, count = net.losses(out, x, target)
        assert int(count) == 1
        assert parts["pixels"].item() == pytest.approx(float(-out[0, :, 4, 7].log_softmax(0)[2]), rel=1e-5)


class TestSpineNet:
    def head(self, width: int) -> DetectorConfig:
        return DetectorConfig(pyramid=PyramidConfig(width=width, norm="group"), convs=1)

    def test_levels_and_gradients(self) -> None:
        net = build_scene_net(NetConfig(name="spinenet:49S", multiplier=0.125), self.head(16), 4)
        x = torch.randn(2, 3, 128, 128)
        assert [tuple(level.shape[1:]) for level in net.maps(x)] == [(16, 128 // 2**i, 128 // 2**i) for i in range(3, 8)]
        assert isinstance(net, Detector)
        parts, _ = net.losses(net(x), x, some_targets()[:2])
        torch.stack(list(parts.values())).sum().backward()
        assert not [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]

    @pytest.mark.parametrize(("size", "width", "convs", "millions"), [("143", 256, 4, 67), ("190", 512, 7, 164)])
    def test_as_large_as_published(self, size: str, width: int, convs: int, millions: int) -> None:
        """Table 5 of *Rethinking* (the code's README) counts 67 and 164 million with RetinaNet's head; that of 190 has seven
        convolutions a branch."""
        from ssl_ray.nets.spinenet import SpineNet

        pyramid = PyramidConfig(strides=(8,), width=width)
        with torch.device("meta"):
            net = Detector(SpineNet(size), 90, DetectorConfig(pyramid=pyramid, convs=convs), NoiseSource())
        assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=0.04)

    def test_what_does_not_fit_is_named(self) -> None:
        with pytest.raises(ConfigError, match="gives 5 levels from stride 8 on, 16 wide"):
            build_scene_net(NetConfig(name="spinenet:49S", multiplier=0.125), self.head(32), 3)
        with pytest.raises(ConfigError, match="49S, 49, 96, 143, 190"):
            override(SMALL, {"name": "spinenet:50"})
        with pytest.raises(ConfigError, match="too coarse for masks"):
            build_scene_net(NetConfig(name="spinenet:49S", multiplier=0.125), SegmenterConfig(), 3)
