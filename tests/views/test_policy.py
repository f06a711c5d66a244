from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_ray.randomness import BatchDraw
from ssl_ray.settings.views import Preprocess, RandAugmentConfig, ViewConfig
from ssl_ray.views.decode import open_rgb, resized_crop, whole
from ssl_ray.views.policy import augment, normalize


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def ramp(height: int = 16, width: int = 12) -> torch.Tensor:
    return torch.arange(height * width, dtype=torch.uint8).reshape(1, 1, height, width).expand(2, 3, height, width)


def test_no_noise_is_the_labelling_view() -> None:
    images = ramp()
    assert torch.equal(augment(images, ViewConfig(), BatchDraw((0,), 2)), images.float())


def test_pad_and_crop_cuts_what_padding_shows() -> None:
    images = ramp()
    result = augment(images, ViewConfig(crop="pad", pad=3), BatchDraw((0,), 2))
    offsets = BatchDraw((0,), 2).integers(7, 2)
    padded = torch.nn.functional.pad(images.float(), (3, 3, 3, 3), mode="reflect")
    for i, (top, left) in enumerate(offsets):
        assert torch.equal(result[i], padded[i, :, top : top + 16, left : left + 12])


def test_flip_turns_about_half() -> None:
    images = ramp()[:1].expand(400, 3, 16, 12)
    result = augment(images, ViewConfig(flip=True), BatchDraw((3,), 400))
    turned = (result == images.float().flip(3)).flatten(1).all(1)
    assert ((result == images.float()).flatten(1).all(1) | turned).all()
    assert 150 < int(turned.sum()) < 250


def test_rows_without_noise_pass_unchanged() -> None:
    images = ramp()
    view = ViewConfig(crop="pad", randaugment=RandAugmentConfig(magnitude=9), cutout=4)
    result = augment(images, view, BatchDraw((0,), 2), torch.tensor([True, False]))
    assert torch.equal(result[1], images[1].float())
    assert not torch.equal(result[0], images[0].float())


def test_normalize() -> None:
    preprocess = Preprocess(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    result = normalize(torch.full((1, 3, 8, 8), 255, dtype=torch.uint8), preprocess)
    torch.testing.assert_close(result[0, :, 0, 0], torch.tensor([2.5, 3.0, 7.0]))


def test_whole_and_centre() -> None:
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[16:48, 32:64] = 255  # a square in the middle
    image = open_rgb(encode(pixels))
    assert whole(image, Preprocess(size=32)).shape == (32, 32, 3)
    centre = whole(image, Preprocess(size=32, crop="center"))  # 32 / 64 of the short side: 32 pixels, unscaled
    assert (centre == 255).all()


def test_resized_crop_is_addressed() -> None:
    image = open_rgb(encode(np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)))
    first = resized_crop(image, 24, np.random.default_rng(1))
    assert first.shape == (24, 24, 3)
    np.testing.assert_array_equal(first, resized_crop(image, 24, np.random.default_rng(1)))


@pytest.mark.parametrize(
    "data", [b"", b"no image", encode(np.zeros((9, 9, 3), np.uint8))[:40]], ids=["empty", "text", "cut short"]
)
def test_what_is_no_image_gives_one_line(data: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be decoded") as error:
        open_rgb(data)
    assert "\n" not in str(error.value)


def test_grey_and_transparent_images_become_rgb() -> None:
    assert np.asarray(open_rgb(encode(np.zeros((5, 5), np.uint8)))).shape == (5, 5, 3)
    assert np.asarray(open_rgb(encode(np.zeros((5, 5, 4), np.uint8)))).shape == (5, 5, 3)
