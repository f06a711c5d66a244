"""The views of SimCLR against other libraries' operations, and their independence of the company an image is in."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from ssl_ray.randomness import BatchDraw
from ssl_ray.settings.views import SimCLRViewConfig
from ssl_ray.views.simclr import (
    blur_matrix,
    contrast,
    crop_boxes,
    gaussian_blur,
    hue_shift,
    resize_matrix,
    resized_crops,
    saturation,
    simclr_view,
)


def photo(side: int = 40, seed: int = 0) -> np.ndarray:
    """Smooth colours, uint8 [side, side, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("box", "size"), [((0, 0, 40, 40), 20), ((5, 8, 20, 25), 28), ((3, 0, 37, 30), 16)])
def test_crops_equal_pillow_s(box: tuple[int, int, int, int], size: int) -> None:
    top, left, height, width = box
    x = torch.from_numpy(photo()).permute(2, 0, 1)[None].float() / 255
    ours = resized_crops(x, torch.tensor([box]), torch.tensor([False]), size)[0].permute(1, 2, 0).numpy() * 255
    cut = Image.fromarray(photo()[top : top + height, left : left + width])
    theirs = np.asarray(cut.resize((size, size), Image.Resampling.BICUBIC), np.float32)
    assert np.abs(ours - theirs).max() < 2.0


def test_flip_mirrors() -> None:
    x = torch.rand(2, 3, 8, 8)
    boxes = torch.tensor([[0, 0, 8, 8]] * 2)
    out = resized_crops(x, boxes, torch.tensor([False, True]), 8)
    torch.testing.assert_close(out[0], x[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(out[1], x[1].flip(2), atol=1e-5, rtol=0)


def test_rows_of_the_matrices_sum_to_one() -> None:
    start, length = torch.tensor([0, 3]), torch.tensor([20, 5])
    torch.testing.assert_close(resize_matrix(start, length, 20, 7).sum(2), torch.ones(2, 7))
    torch.testing.assert_close(blur_matrix(torch.tensor([0.1, 2.0]), 30).sum(2), torch.ones(2, 30))


def test_boxes_stay_inside_and_have_the_promised_sizes() -> None:
    boxes = crop_boxes(40, 50, BatchDraw((0,), 500), 0.08)
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 40).all()
    assert (left + width <= 50).all()
    share, aspect = height * width / 2000, width / height
    assert 0.07 < share.min() < 0.12
    assert share.max() > 0.8
    assert aspect.min() > 0.7
    assert aspect.max() < 1.4
    assert np.array_equal(crop_boxes(30, 30, BatchDraw((0,), 3), 1.0)[:, 2:], np.full((3, 2), 30))


@pytest.mark.parametrize("turns", [-0.2, 0.1, 0.5])
def test_hue_equals_the_textbook(turns: float) -> None:
    x = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    ours = hue_shift(x, torch.full((1, 1, 1, 1), turns))[0].permute(1, 2, 0).reshape(-1, 3).numpy()
    for before, after in zip(x[0].permute(1, 2, 0).reshape(-1, 3).tolist(), ours, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*before)
        np.testing.assert_allclose(after, colorsys.hsv_to_rgb((h + turns) % 1.0, s, v), atol=1e-5)


@pytest.mark.parametrize("factor", [0.3, 1.7, 5.0])
def test_saturation_equals_the_textbook(factor: float) -> None:
    x = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    ours = saturation(x, torch.full((1, 1, 1, 1), factor))[0].permute(1, 2, 0).reshape(-1, 3).numpy()
    for before, after in zip(x[0].permute(1, 2, 0).reshape(-1, 3).tolist(), ours, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*before)
        np.testing.assert_allclose(after, colorsys.hsv_to_rgb(h, min(1.0, s * factor), v), atol=1e-5)


def test_grey_pixels_keep_their_colour() -> None:
    x = torch.full((1, 3, 2, 2), 0.4)
    torch.testing.assert_close(hue_shift(x, torch.full((1, 1, 1, 1), 0.3)), x)
    torch.testing.assert_close(saturation(x, torch.full((1, 1, 1, 1), 3.0)), x)


def test_contrast_is_around_each_channel_s_mean() -> None:
    x = torch.rand(2, 3, 6, 6)
    flat = contrast(x, torch.zeros(2, 1, 1, 1))
    torch.testing.assert_close(flat, x.mean(dim=(2, 3), keepdim=True).expand_as(x))


def test_blur_equals_torchvision_s_inside() -> None:
    x = torch.from_numpy(photo(60)).permute(2, 0, 1)[None].float() / 255
    ours = gaussian_blur(x, torch.tensor([1.3]))
    theirs = tv.gaussian_blur(x, [7, 7], [1.3, 1.3])
    torch.testing.assert_close(ours[:, :, 5:-5, 5:-5], theirs[:, :, 5:-5, 5:-5], atol=1e-4, rtol=0)


class TestView:
    images = torch.from_numpy(np.stack([photo(32, seed) for seed in range(12)])).permute(0, 3, 1, 2)

    def test_an_image_gets_the_same_view_in_any_company(self) -> None:
        whole = simclr_view(self.images, SimCLRViewConfig(), BatchDraw((3,), 12), 24)
        part = simclr_view(self.images[4:9], SimCLRViewConfig(), BatchDraw((3,), 12, np.arange(4, 9)), 24)
        torch.testing.assert_close(part, whole[4:9], atol=1e-3, rtol=0)

    def test_shapes_range_and_difference(self) -> None:
        first, second = (simclr_view(self.images, SimCLRViewConfig(), BatchDraw((seed,), 12), 24) for seed in (0, 1))
        assert first.shape == (12, 3, 24, 24)
        assert first.dtype == torch.float32
        assert first.min() >= 0
        assert first.max() <= 255.001
        assert (first - second).abs().mean(dim=(1, 2, 3)).min() > 1

    def test_everything_off_is_the_image(self) -> None:
        off = SimCLRViewConfig(crop=1.0, flip=False, jitter=0, grey=0, blur=0, decode_crops=True)
        torch.testing.assert_close(
            simclr_view(self.images, off, BatchDraw((0,), 12), 32), self.images.float(), atol=0.05, rtol=0
        )

    @pytest.mark.parametrize(
        ("settings", "share"), [({"grey": 0.2, "jitter": 0.0}, 0.2), ({"flip": True}, 0.5), ({"jitter": 0.8}, 0.8)]
    )
    def test_probabilities(self, settings: dict[str, float], share: float) -> None:
        off = {"crop": 1.0, "flip": False, "jitter": 0.0, "grey": 0.0, "blur": 0.0, "decode_crops": True}
        view = SimCLRViewConfig(**(off | settings))
        many = self.images[:1].expand(600, -1, -1, -1)
        changed = (simclr_view(many, view, BatchDraw((0,), 600), 32) - many).abs().amax(dim=(1, 2, 3)) > 2
        assert float(changed.float().mean()) == pytest.approx(share, abs=0.06)

    def test_autocast_leaves_the_pixels_alone(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            under = simclr_view(self.images, SimCLRViewConfig(), BatchDraw((0,), 12), 24)
        torch.testing.assert_close(under, simclr_view(self.images, SimCLRViewConfig(), BatchDraw((0,), 12), 24))
