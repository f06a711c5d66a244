"""Augment-S1 to S4: boxes and masks go where the pixels go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_ray.randomness import generator
from ssl_ray.settings.views import AugmentConfig, Preprocess
from ssl_ray.views.decode import whole
from ssl_ray.views.scenes import (
    AUTOAUGMENT,
    GEOMETRIC,
    IGNORE,
    RANDAUGMENT,
    Scene,
    apply,
    autoaugment,
    boxes_moved,
    colours,
    flip,
    moved,
    resize_and_crop,
    view,
)

PREPROCESS = Preprocess(size=64, crop="fit", interpolation="bilinear")


def scene(height: int = 60, width: int = 80, box: tuple[int, int, int, int] = (20, 15, 44, 40)) -> Scene:
    """A white thing on black, with its box and mask."""
    left, top, right, bottom = box
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, top:bottom, left:right] = 255
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[top:bottom, left:right] = 5
    return Scene(image, torch.tensor([box], dtype=torch.float32), torch.tensor([3]), mask)


def around(pixels: torch.Tensor) -> list[float]:
    """The box around the pixels that are set, bool [H, W]."""
    rows, columns = pixels.any(dim=1).nonzero()[:, 0], pixels.any(dim=0).nonzero()[:, 0]
    return [float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1]


def thing(found: Scene) -> torch.Tensor:
    return found.image[0] > 190


def agrees(found: Scene, pixels: float = 2.0) -> None:
    assert found.boxes is not None
    assert found.mask is not None
    assert found.boxes[0].tolist() == pytest.approx(around(thing(found)), abs=pixels)
    assert found.boxes[0].tolist() == pytest.approx(around(found.mask == 5), abs=pixels)


def test_flip() -> None:
    once = flip(scene())
    agrees(once, 0.0)
    twice = flip(once)
    assert torch.equal(twice.image, scene().image)
    assert torch.equal(twice.boxes, scene().boxes)  # type: ignore[arg-type]
    assert not torch.equal(once.image, scene().image)


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_what_moves_pixels_moves_boxes_and_masks(name: str, sign: float) -> None:
    amount = {"Rotate": 18.0, "ShearX": 0.25, "ShearY": 0.25}.get(name, 9.0)
    found = moved(scene(), name, sign * amount)
    assert not torch.equal(found.image, scene().image)
    agrees(found)
    assert (found.mask == IGNORE).any()  # what was uncovered is no class


def test_a_shear_keeps_the_first_row() -> None:
    ramp = torch.arange(100).to(torch.uint8).expand(3, 100, 100)
    sheared = moved(Scene(ramp, boxes=torch.tensor([[40.0, 0, 60, 50]]), labels=torch.tensor([0])), "ShearX", -0.3)
    assert [abs(int(sheared.image[0, row, 50]) - 50) for row in (0, 50, 99)] == [0, 15, 30]
    assert sheared.boxes is not None
    left, top, right, bottom = sheared.boxes[0].tolist()
    assert (top, bottom) == pytest.approx((0, 50), abs=0.01)
    assert right - left == pytest.approx(20 + 15, abs=0.1)
    assert left == pytest.approx(40, abs=0.1) or right == pytest.approx(60, abs=0.1)


def test_translation_goes_by_so_many_pixels() -> None:
    found = moved(scene(), "TranslateX", 9.0)
    assert found.boxes is not None
    assert found.boxes[0].tolist() == pytest.approx([29, 15, 53, 40], abs=1e-4)


def test_a_box_that_leaves_is_dropped_with_its_label() -> None:
    found = moved(scene(box=(2, 20, 12, 30)), "TranslateX", -40.0)
    assert found.boxes is not None
    assert found.labels is not None
    assert found.boxes.shape == (0, 4)
    assert found.labels.shape == (0,)


@pytest.mark.parametrize("seed", range(6))
def test_jitter_and_crop_keep_places(seed: int) -> None:
    config = AugmentConfig(name="S3")
    found = resize_and_crop(scene(), config, PREPROCESS, generator("jitter", seed))
    assert found.image.shape == (3, 64, 64)
    assert found.mask is not None
    if found.boxes is not None and len(found.boxes) and (found.mask == 5).any():
        agrees(found, 1.5)


def test_small_scales_leave_a_margin_and_large_ones_cut() -> None:
    small = resize_and_crop(scene(), AugmentConfig(jitter=(0.5, 0.5)), PREPROCESS, generator("small"))
    assert small.mask is not None
    assert (small.mask[24:] == IGNORE).all()
    assert (small.mask[:, 32:] == IGNORE).all()
    assert (small.image[:, 24:] == 128).all()  # the mean colour, which normalisation takes to zero
    assert small.boxes is not None
    assert small.boxes[0].tolist() == pytest.approx([8, 6, 17.6, 16], abs=1e-4)
    large = resize_and_crop(scene(), AugmentConfig(jitter=(2.0, 2.0)), PREPROCESS, generator("large"))
    assert large.mask is not None
    assert not (large.mask == IGNORE).any()


def test_without_noise_it_is_the_view_of_labelling() -> None:
    config = AugmentConfig(name="none")
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (64, 48, 3)).astype(np.uint8)
    made = view(Scene(torch.from_numpy(pixels).permute(2, 0, 1)), config, PREPROCESS, generator("none"))
    np.testing.assert_array_equal(made.image.permute(1, 2, 0).numpy(), whole(Image.fromarray(pixels), PREPROCESS))
    # Another size: torchvision's antialiased resize differs from Pillow's by rounding alone.
    pixels = draw.integers(0, 256, (90, 120, 3)).astype(np.uint8)
    made = view(Scene(torch.from_numpy(pixels).permute(2, 0, 1)), config, PREPROCESS, generator("none"))
    difference = made.image.permute(1, 2, 0).numpy().astype(int) - whole(Image.fromarray(pixels), PREPROCESS).astype(int)
    assert abs(difference).max() <= 1


@pytest.mark.parametrize("name", ["S1", "S2", "S3", "S4"])
def test_an_address_gives_one_view(name: str) -> None:
    config = AugmentConfig(name=name)  # type: ignore[arg-type]
    first, again = (view(scene(), config, PREPROCESS, generator("views", 7)) for _ in range(2))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.boxes, again.boxes)  # type: ignore[arg-type]
    assert torch.equal(first.mask, again.mask)  # type: ignore[arg-type]
    others = [view(scene(), config, PREPROCESS, generator("views", seed)).image for seed in range(8, 12)]
    assert any(not torch.equal(first.image, other) for other in others)


def test_ranges_by_name() -> None:
    assert AugmentConfig(name="S1").scales == AugmentConfig(name="S2").scales == (0.8, 1.2)
    assert AugmentConfig(name="S3").scales == AugmentConfig(name="S4").scales == (0.5, 2.0)
    assert AugmentConfig(name="S4", jitter=(0.1, 1.9)).scales == (0.1, 1.9)


@pytest.mark.parametrize("name", [*RANDAUGMENT, "BoxTranslateY"])
@pytest.mark.parametrize("level", [0.0, 4.0, 10.0])
def test_every_operation_runs_and_keeps_its_contract(name: str, level: float) -> None:
    draw = np.random.default_rng(1)
    image = torch.from_numpy(draw.integers(0, 256, (3, 40, 50)).astype(np.uint8))
    before = Scene(image, torch.tensor([[5.0, 6, 30, 33]]), torch.tensor([1]), torch.ones(40, 50, dtype=torch.uint8))
    copy = image.clone()
    found = apply(before, name, level, 640, generator("op", name))
    assert torch.equal(before.image, copy), "the image that came in was changed"
    assert found.image.shape == image.shape
    assert found.image.dtype == torch.uint8
    assert found.boxes is not None
    assert found.labels is not None
    assert len(found.boxes) == len(found.labels)


def test_colour_operations_by_value() -> None:
    """Solarize turns what is over its threshold: nothing at the full level, half of the range at half of it."""
    image = torch.tensor([0, 100, 127, 128, 200, 255], dtype=torch.uint8).reshape(1, 1, 6).repeat(3, 1, 1)
    change = colours()
    assert change["Solarize"](image, 1.0)[0, 0].tolist() == [0, 100, 127, 128, 200, 255]
    assert change["Solarize"](image, 0.5)[0, 0].tolist() == [0, 100, 127, 127, 55, 0]
    assert change["SolarizeAdd"](image, 1.0)[0, 0].tolist() == [110, 210, 237, 128, 200, 255]
    assert change["Posterize"](image, 1.0)[0, 0].tolist() == [0, 96, 112, 128, 192, 240]
    for name in ("Color", "Contrast", "Brightness", "Sharpness"):  # a factor of one changes nothing
        assert torch.equal(change[name](image, 0.5), image), name


def test_a_mask_shrinks_with_its_image() -> None:
    """Its edge stays where the image's is, not where the corners of pixels fall."""
    found = scene(400, 400, (130, 130, 270, 270))
    small = resize_and_crop(
        found, AugmentConfig(name="none"), Preprocess(size=40, crop="fit", interpolation="bilinear"), generator(0)
    )
    assert small.mask is not None
    assert (small.mask[:, :20] == 5).sum() == (small.mask[:, 20:] == 5).sum(), "as symmetric as the image"
    assert torch.equal(small.mask == 5, small.image[0] > 127)


def test_colour_operations_leave_places_alone() -> None:
    for name in colours():
        found = apply(scene(), name, 7.0, 640, generator("colour"))
        assert torch.equal(found.boxes, scene().boxes)  # type: ignore[arg-type]
        assert torch.equal(found.mask, scene().mask)  # type: ignore[arg-type]


def test_boxes_moved_touches_the_inside_of_boxes_alone() -> None:
    draw = np.random.default_rng(2)
    image = torch.from_numpy(draw.integers(0, 256, (3, 60, 80)).astype(np.uint8))
    before = Scene(image, torch.tensor([[20.0, 15, 44, 40]]), torch.tensor([3]))
    found = boxes_moved(before, 5.0, 1.0, generator("boxes"))
    assert torch.equal(found.image[:, 20:40, 20:44], image[:, 15:35, 20:44])
    assert (found.image[:, 15:20, 20:44] == 128).all()
    outside = torch.ones(60, 80, dtype=torch.bool)
    outside[15:40, 20:44] = False
    assert torch.equal(found.image[:, outside], image[:, outside])
    assert torch.equal(boxes_moved(before, 5.0, 0.0, generator("boxes")).image, image)


def test_autoaugment_uses_every_line() -> None:
    """Each line moves something: over many draws all kinds of changes are seen."""
    changed = {"boxes": 0, "pixels": 0}
    for seed in range(60):
        found = autoaugment(scene(), AugmentConfig(name="S2"), generator("auto", seed))
        changed["boxes"] += not torch.equal(found.boxes, scene().boxes)  # type: ignore[arg-type]
        changed["pixels"] += not torch.equal(found.image, scene().image)
    assert len(AUTOAUGMENT) == 5
    assert 10 < changed["boxes"] < changed["pixels"] < 60
