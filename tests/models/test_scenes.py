"""A trained detector in use: where its boxes lie, and what is put aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ssl_ray.models.scenes import SceneModel, surest
from ssl_ray.nets import build_described_scene_net

DESCRIPTION: dict[str, Any] = {
    "task": "detection",
    "net": {"name": "small_resnet", "width": 16, "stem_stride": 2},
    "head": {"pyramid": {"strides": [4, 8], "width": 16}, "levels": 2, "convs": 1, "score": 0.001},
    "preprocess": {"size": 64, "crop": "fit"},
    "classes": ["a", "b", "c"],
    "num_classes": 3,
}


@pytest.fixture
def model() -> SceneModel:
    torch.manual_seed(0)
    return SceneModel(DESCRIPTION, build_described_scene_net(DESCRIPTION).state_dict())


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)


SIZES = np.array([[64, 64], [128, 128]], np.int32)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_boxes_at_another_scale_lie_in_the_image_as_it_came(scale: float, model: SceneModel, pixels: np.ndarray) -> None:
    model.scales = (scale,)
    found: Any = model.scenes(pixels, SIZES)
    side = int(64 * scale)
    scaled = F.interpolate(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), size=(side, side), mode="bilinear", antialias=True
    )
    with torch.inference_mode():
        expected = model.net.boxes(model(scaled), scaled)
    for item, there, factor in zip(found, expected, (1.0, 2.0), strict=True):  # the second image came twice as large
        assert len(item.boxes) > 5
        np.testing.assert_allclose(item.boxes, there["boxes"].numpy() * factor / scale, atol=1e-3)
        np.testing.assert_array_equal(item.labels, there["labels"].numpy())


def test_what_is_found_has_names(model: SceneModel, pixels: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(pixels[0]).resize((128, 96)).save(tmp_path / "x.png")
    everything = model.find(tmp_path / "x.png", over=0.0)
    [said] = model.predict(tmp_path / "x.png")
    assert len(everything) == len(said) > 5  # type: ignore[arg-type]
    names, scores, corners = zip(*everything, strict=True)
    assert set(names) <= {"a", "b", "c"}
    assert list(scores) == sorted(scores, reverse=True)
    assert all(0 <= x1 < x2 <= 128 and 0 <= y1 < y2 <= 96 for x1, y1, x2, y2 in corners)
    few = model.find(str(tmp_path / "x.png"), over=scores[2])
    assert few == [item for item in everything if item[1] >= scores[2]]


@pytest.mark.parametrize("part", ["classification_head.cls_logits", "regression_head.bbox_reg"])
def test_what_is_no_number_is_told(part: str, model: SceneModel, pixels: np.ndarray) -> None:
    assert [item.finite for item in model.scenes(pixels, SIZES)] == [True, True]
    torch.nn.init.constant_(model.net.head.get_submodule(part).bias, float("nan"))  # type: ignore[arg-type]
    assert [item.finite for item in model.scenes(pixels, SIZES)] == [False, False]


@pytest.mark.parametrize("size", [(6, 8), (37, 50)])
def test_masks_grow_class_by_class_as_all_at_once(size: tuple[int, int]) -> None:
    probs = torch.randn(5, 6, 8).softmax(dim=0)
    sure, classes = surest(probs, size)
    at_once = F.interpolate(probs[None], size=size, mode="bilinear", align_corners=False)[0]
    assert torch.equal(sure, at_once.max(dim=0).values)
    assert torch.equal(classes, at_once.argmax(dim=0))
    broken = probs.clone()
    broken[2, 3, 3] = float("nan")
    assert not bool(torch.isfinite(surest(broken, size)[0]).all())
