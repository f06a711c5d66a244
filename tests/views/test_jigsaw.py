"""Puzzles: every tile from its cell, in the place that the permutation says, with gaps, shifts, colours and strangers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ssl_ray.permutations import PermutationsConfig, permutations
from ssl_ray.randomness import BatchDraw
from ssl_ray.settings.views import JigsawViewConfig, Sizes
from ssl_ray.views.jigsaw import cut, normalised, occluded, puzzles, recoloured

PLAIN: dict[str, Any] = {"grey": 0.0, "shift": 0, "occluded": 0, "norm": "none"}
SET = torch.from_numpy(permutations(PermutationsConfig(count=20)))


def numbered(n: int, size: int) -> torch.Tensor:
    """Pixel values that tell the cell: 10 * cell + 100 * (image is odd)."""
    cell = size // 3
    place = torch.arange(size).div(cell, rounding_mode="floor").clamp(max=2)
    image = (3 * place[:, None] + place[None]) * 10
    odd = (torch.arange(n) % 2 * 100).reshape(-1, 1, 1, 1)
    return (image[None, None] + odd).expand(n, 3, size, size).to(torch.uint8)


def draw(n: int, step: int = 0) -> BatchDraw:
    return BatchDraw((0, "test", step), n)


class TestSizes:
    def test_the_released_ones(self) -> None:
        found = Sizes(255, JigsawViewConfig())
        assert (found.cell, found.tile, found.jitter, found.shift) == (85, 64, 19, 2)

    @pytest.mark.parametrize("size", [28, 32, 48, 64, 96, 224, 255])
    def test_small_images_have_tiles_that_stay_in_their_cells(self, size: int) -> None:
        found = Sizes(size, JigsawViewConfig())
        assert found.tile >= 6
        assert found.jitter >= 1
        assert found.tile + found.jitter + found.shift == found.cell

    def test_what_does_not_fit_is_said(self) -> None:
        with pytest.raises(
            ValueError, match=r"9 cells of 2, and tiles of 4 pixels do not fit or are smaller than 4; take larger images"
        ):
            Sizes(8, JigsawViewConfig(tile=4))
        with pytest.raises(ValueError, match=r"cells of 3, and tiles of 2 pixels"):
            Sizes(10, JigsawViewConfig())
        with pytest.raises(ValueError, match=r"leave cells of 9 with tiles of 6; lower them"):
            Sizes(28, JigsawViewConfig(jitter=5))


class TestPuzzles:
    def test_slot_i_shows_tile_perm_i(self) -> None:
        tiles, label = puzzles(numbered(64, 28), SET, JigsawViewConfig(**PLAIN), draw(64), np.arange(64))
        assert tiles.shape == (64, 9, 3, 6, 6)
        shown = (tiles + 1) * 127.5
        expected = SET[label].float() * 10 + (torch.arange(64) % 2 * 100)[:, None]
        assert torch.allclose(shown, expected[:, :, None, None, None].expand_as(shown), atol=1e-3)
        assert len(label.unique()) > 10

    def test_gaps_vary_and_channels_shift_apart(self) -> None:
        ramp = torch.arange(28).float()[None, None, None, :].expand(200, 3, 28, 28)
        view = JigsawViewConfig(grey=0)
        sizes = Sizes(28, view)
        tiles = cut(ramp, sizes, draw(200))
        left = tiles[:, 4, :, 0, 0] - sizes.cell  # of the middle cell
        assert set(left.unique().tolist()) == {0.0, 1.0, 2.0, 3.0}
        apart = left.max(dim=1).values - left.min(dim=1).values
        assert apart.max() == sizes.shift
        assert not torch.equal(tiles[:, 0, 0, 0, 0], left[:, 0])

    def test_strangers(self) -> None:
        mine, others = (
            torch.zeros(4000, 9, 1, 1, 1),
            torch.arange(1, 10).float().reshape(1, 9, 1, 1, 1).expand(4000, 9, 1, 1, 1),
        )
        found = occluded(mine, others, 2, draw(4000)).reshape(4000, 9)
        number = (found > 0).sum(dim=1)
        assert torch.allclose(torch.bincount(number) / 4000, torch.full((3,), 1 / 3), atol=0.03)
        two = found[number == 2]
        assert all(len(row[row > 0].unique()) == 2 for row in two)
        slots, sources = torch.where(found > 0)[1], found[found > 0]
        assert torch.allclose(torch.bincount(slots, minlength=9) / len(slots), torch.full((9,), 1 / 9), atol=0.02)
        pairs = torch.bincount((slots * 9 + sources.long() - 1), minlength=81).reshape(9, 9)
        expected = len(slots) / 81
        assert (pairs - expected).abs().max() < 6 * expected**0.5, "source and destination are independent"
        assert torch.equal(mine, torch.zeros_like(mine)), "the puzzle itself is not changed in place"

    def test_a_partner_occludes(self) -> None:
        view = JigsawViewConfig(**{**PLAIN, "occluded": 2})
        partner = np.arange(64) ^ 1  # odd images are 100 brighter
        tiles, _ = puzzles(numbered(64, 28), SET, view, draw(64), partner)
        bright = ((tiles + 1) * 127.5)[:, :, 0, 0, 0] >= 99.5
        strangers = (bright != (torch.arange(64) % 2 == 1)[:, None]).sum(dim=1)
        assert set(strangers.tolist()) == {0, 1, 2}


class TestColour:
    x = torch.rand(400, 3, 9, 9, generator=torch.Generator().manual_seed(0)) * 255

    def test_grey_is_the_mean_for_a_share(self) -> None:
        found = recoloured(self.x, JigsawViewConfig(grey=0.7), draw(400))
        grey = (found[:, 0] == found[:, 1]).all(dim=2).all(dim=1)
        assert 0.63 < grey.float().mean() < 0.77
        assert torch.allclose(found[grey][:, 0], self.x[grey].mean(dim=1))
        assert torch.equal(found[~grey], self.x[~grey])

    def test_the_projection_takes_out_green_against_magenta(self) -> None:
        found = recoloured(self.x, JigsawViewConfig(grey=0, projected=1), draw(400))
        axis = torch.tensor([-1.0, 2.0, -1.0]).reshape(1, 3, 1, 1)
        assert (found * axis).sum(dim=1).abs().max() < 1e-3
        matrix = torch.tensor([[0.8333, 0.3333, -0.1667], [0.3333, 0.3333, 0.3333], [-0.1667, 0.3333, 0.8333]])
        assert torch.allclose(found, torch.einsum("ij,njhw->nihw", matrix, self.x), atol=0.1)


class TestNorm:
    tiles = torch.rand(5, 9, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 255

    def test_over_all_channels_or_each(self) -> None:
        joint = normalised(self.tiles, JigsawViewConfig(scale=50))
        assert joint.mean(dim=(2, 3, 4)).abs().max() < 1e-3
        assert torch.allclose(joint.std(dim=(2, 3, 4), unbiased=False), torch.full((5, 9), 50.0), rtol=1e-4)
        assert joint.mean(dim=(3, 4)).abs().max() > 0.5
        each = normalised(self.tiles, JigsawViewConfig(norm="channel"))
        assert each.mean(dim=(3, 4)).abs().max() < 1e-4

    def test_a_flat_tile_is_zero_and_not_noise(self) -> None:
        assert torch.equal(normalised(torch.full((1, 9, 3, 6, 6), 137.0), JigsawViewConfig()), torch.zeros(1, 9, 3, 6, 6))


def test_rows_of_another_worker_change_nothing() -> None:
    images, view = numbered(32, 28), JigsawViewConfig(grey=0.5)
    images = (images + torch.randint(0, 50, images.shape, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    whole, labels = puzzles(images, SET, view, draw(32), np.arange(32) ^ 1)
    for rows in (np.arange(0, 16), np.arange(16, 32)):
        part, label = puzzles(images[rows], SET, view, BatchDraw((0, "test", 0), 32, rows), np.arange(16) ^ 1)
        assert torch.equal(part, whole[rows])
        assert torch.equal(label, labels[rows])
