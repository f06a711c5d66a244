from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from ssl_ray.randomness import BatchDraw
from ssl_ray.views import randaugment as ra


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """uint8 [6, 3, 24, 20]: noise, gradients, a flat image and one of few values."""
    g = torch.Generator().manual_seed(0)
    batch = torch.randint(0, 256, (6, 3, 24, 20), generator=g, dtype=torch.uint8)
    batch[1] = torch.linspace(30, 200, 24)[None, :, None].expand(3, 24, 20).to(torch.uint8)
    batch[2] = 77
    batch[3] = (batch[3] // 64) * 64
    return batch


def each(images: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    return torch.stack([function(image) for image in images]).float()


def factors(images: torch.Tensor, value: float) -> torch.Tensor:
    return torch.full((len(images),), value)


@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance"),
    [
        (ra.autocontrast, tv.autocontrast, 1),
        (ra.equalize, tv.equalize, 0),
        (ra.invert, tv.invert, 0),
        (lambda x: ra.posterize(x, 3), lambda x: tv.posterize(x, 3), 0),
        (lambda x: ra.solarize(x, 128), lambda x: tv.solarize(x, 128), 0),
        (lambda x: ra.color(x, factors(x, 1.9)), lambda x: tv.adjust_saturation(x, 1.9), 1),
        (lambda x: ra.color(x, factors(x, 0.3)), lambda x: tv.adjust_saturation(x, 0.3), 1),
        (lambda x: ra.contrast(x, factors(x, 1.7)), lambda x: tv.adjust_contrast(x, 1.7), 1),
        (lambda x: ra.brightness(x, factors(x, 0.4)), lambda x: tv.adjust_brightness(x, 0.4), 1),
        (lambda x: ra.sharpness(x, factors(x, 1.8)), lambda x: tv.adjust_sharpness(x, 1.8), 1),
    ],
    ids=["autocontrast", "equalize", "invert", "posterize", "solarize", "color", "grey", "contrast", "brightness", "sharpness"],
)
def test_operations_equal_torchvision_s(
    images: torch.Tensor,
    ours: Callable[[torch.Tensor], torch.Tensor],
    theirs: Callable[[torch.Tensor], torch.Tensor],
    tolerance: int,
) -> None:
    difference = (ours(images.float()) - each(images, theirs)).abs()
    assert difference.max() <= tolerance


@pytest.mark.parametrize("op", ra.GEOMETRIC)
@pytest.mark.parametrize("sign", [-1, 1])
def test_geometry_equals_torchvision_s(images: torch.Tensor, op: str, sign: int) -> None:
    config = ra.RandAugmentConfig(magnitude=7, translate=5)
    value = sign * ra.magnitude(op, config)
    degrees = {"Rotate": (value, [0, 0], [0.0, 0.0])}
    shear = math.degrees(math.atan(value))
    angle, move, tilt = degrees.get(op, (0.0, [0, 0], [0.0, 0.0]))
    if op.startswith("Shear"):
        tilt = [shear, 0.0] if op == "ShearX" else [0.0, shear]
    matrix = ra._matrix(op, sign, config, *images.shape[2:])
    center = None if op == "Rotate" else [0.0, 0.0]
    if op.startswith("Translate"):  # torchvision moves by whole pixels, and the content instead of the window
        move = [-round(value), 0] if op == "TranslateX" else [0, -round(value)]
        matrix[:, 2] = matrix[:, 2].round()
    ours = ra.affine(images.float(), matrix.expand(len(images), 2, 3))

    def theirs(turn: int) -> torch.Tensor:
        return each(
            images, lambda x: tv.affine(x, turn * angle, move, 1.0, [turn * t for t in tilt], fill=[128.0] * 3, center=center)
        )

    # The signs of a turn and a shear are drawn, so their direction is a convention.
    share = max(float((ours == theirs(turn)).float().mean()) for turn in (-1, 1))
    assert share > 0.97, "nearest neighbour may round a pixel on an edge differently, no more"


@pytest.mark.parametrize("op", ["ShearX", "ShearY"])
def test_a_shear_keeps_the_first_row_or_column(op: str) -> None:
    """As `Image.transform` does in the released code: by 0, 15 and 30 pixels at 0, 50 and 99."""
    ramp = torch.arange(100.0).expand(1, 3, 100, 100)
    config = ra.RandAugmentConfig(magnitude=10)
    sheared = ra.affine(ramp if op == "ShearX" else ramp.mT, ra._matrix(op, 1, config, 100, 100)[None])
    rows = (sheared if op == "ShearX" else sheared.mT)[0, 0]
    assert [int(rows[row, 20]) - 20 for row in (0, 50, 99)] == [0, 15, 30]


def test_magnitudes_of_the_released_code() -> None:
    """The paper's level 27, computed by the code's level / 10 (facts sheet, section A2)."""
    config = ra.RandAugmentConfig(magnitude=27)
    expected = {
        "Rotate": 81, "ShearX": 0.81, "TranslateY": 270, "Color": 4.96, "SolarizeAdd": 297, "Solarize": 691,
        "Posterize": 10, "Cutout": 108,
    }  # fmt: skip
    for op, value in expected.items():
        assert ra.magnitude(op, config) == pytest.approx(value)


def test_magnitudes_of_torchvision() -> None:
    config = ra.RandAugmentConfig(magnitude=27, scale="torchvision")
    assert ra.magnitude("Rotate", config) == pytest.approx(27)
    assert ra.magnitude("Color", config) == pytest.approx(0.81)


def test_overflowing_operations_do_nothing(images: torch.Tensor) -> None:
    x = images.float()
    assert torch.equal(ra.posterize(x, 10), x)
    assert torch.equal(ra.solarize(x, 691), x)


@pytest.mark.parametrize("pool", ["code", "paper", "geometric"])
@pytest.mark.parametrize("scale", ["code", "torchvision"])
def test_a_batch_in_parts_is_the_same_batch(images: torch.Tensor, pool: str, scale: str) -> None:
    config = ra.RandAugmentConfig(magnitude=9, pool=pool, scale=scale, translate=5, cutout=4)  # type: ignore[arg-type]
    whole = ra.randaugment(images.float(), config, BatchDraw((0, 1), 6))
    rows = [np.array([0, 1, 4]), np.array([2, 3, 5])]
    parts = [ra.randaugment(images[part].float(), config, BatchDraw((0, 1), 6, part)) for part in rows]
    for part, result in zip(rows, parts, strict=True):
        torch.testing.assert_close(whole[part], result)
    assert whole.min() >= 0
    assert whole.max() <= 255
    assert torch.equal(whole, whole.floor()), "pixels stay whole numbers"
    assert not torch.equal(whole, images.float())
    assert not torch.equal(whole, ra.randaugment(images.float(), config, BatchDraw((0, 2), 6)))


def test_every_operation_of_the_pool_is_drawn() -> None:
    drawn = BatchDraw((0,), 4000).integers(len(ra.POOLS["code"]))
    share = np.bincount(drawn, minlength=16) / 4000
    assert len(share) == 16
    assert np.abs(share - 1 / 16).max() < 0.02


def test_cutout_fills_its_square(images: torch.Tensor) -> None:
    result = ra.cutout(torch.zeros(1, 3, 24, 20), 4, torch.tensor([[0.5, 0.5]]))
    assert int((result[0, 0] == 128).sum()) == 64
    corner = ra.cutout(torch.zeros(1, 3, 24, 20), 4, torch.tensor([[0.0, 0.0]]))
    assert int((corner[0, 0] == 128).sum()) == 16
