"""NT-Xent against a slow transcription, its closed form, and two workers against one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ssl_ray.distributed import loss_weight
from ssl_ray.losses.contrastive import nt_xent
from ssl_ray.randomness import held_lanes
from tests.workers import on_workers


def transcription(first: torch.Tensor, second: torch.Tensor, temperature: float, memory: list[torch.Tensor]) -> float:
    """The formula of the paper, pair by pair: mean over 2N of -log(exp(s_ij / t) / sum over k != i of exp(s_ik / t))."""
    views = [*first, *second]
    count, total = len(first), 0.0

    def similarity(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    for i, view in enumerate(views):
        j = (i + count) % (2 * count)
        below = sum(math.exp(similarity(view, other) / temperature) for k, other in enumerate(views) if k != i)
        below += sum(math.exp(similarity(view, key) / temperature) for key in memory)
        total -= math.log(math.exp(similarity(view, views[j]) / temperature) / below)
    return total / (2 * count)


@pytest.mark.parametrize("keys", [0, 5])
def test_the_formula(keys: int) -> None:
    torch.manual_seed(0)
    first, second = torch.randn(6, 8, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64)
    memory = torch.nn.functional.normalize(torch.randn(keys, 8, dtype=torch.float64), dim=1)
    expected = transcription(first, second, 0.3, list(memory))
    assert float(nt_xent(first, second, 0.3, memory, "mean")[0]) == pytest.approx(expected, rel=1e-9)
    assert float(nt_xent(first, second, 0.3, memory, "sum")[0]) == pytest.approx(2 * expected, rel=1e-9)


@pytest.mark.parametrize("count", [2, 7, 64])
def test_all_the_same(count: int) -> None:
    """Every view is as near as any other: log(2N - 1)."""
    same = torch.ones(count, 4)
    loss, _ = nt_xent(same, same, 0.1, reduction="mean")
    assert float(loss) == pytest.approx(math.log(2 * count - 1), rel=1e-5)


def test_accuracy() -> None:
    distinct = torch.eye(6)
    assert float(nt_xent(distinct, distinct, 0.1)[1]) == 1.0
    assert float(nt_xent(distinct, distinct.roll(1, 0), 0.1)[1]) == 0.0


def test_it_is_computed_in_full_precision_under_autocast() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(32, 16), torch.randn(32, 16)
    with torch.autocast("cpu", torch.bfloat16):
        under, _ = nt_xent(first, second, 0.05)
    assert torch.equal(under, nt_xent(first, second, 0.05)[0])


def _on_one(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Loss and gradient of this worker's rows; the weights are shared, as under DistributedDataParallel."""
    draw = torch.Generator().manual_seed(1)
    data = torch.randn(2, 12, 5, dtype=torch.float64, generator=draw)
    weight = torch.randn(5, 4, dtype=torch.float64, generator=draw).requires_grad_()
    memory = torch.nn.functional.normalize(torch.randn(7, 4, dtype=torch.float64, generator=draw), dim=1)
    held = held_lanes(LANES, rank, world)
    mine = slice(held.start * 3, held.stop * 3)
    loss, accuracy = nt_xent(data[0, mine] @ weight, data[1, mine] @ weight, 0.2, memory, lanes=LANES)
    loss = loss * loss_weight(LANES)
    loss.backward()
    assert weight.grad is not None
    return {"loss": loss.detach(), "gradient": weight.grad, "accuracy": accuracy * loss_weight(LANES)}


LANES = 4
"""Of three rows each; three workers hold one, one and two of them."""


def test_three_workers_equal_one(tmp_path: Path) -> None:
    """The mean of the workers' gradients, which is what DistributedDataParallel takes, is that of the whole batch."""
    whole, parts = _on_one(0, 1), on_workers(3, _on_one, (), tmp_path)
    for key, value in whole.items():
        torch.testing.assert_close(
            sum(part[key] for part in parts) / 3, value, atol=1e-5 if key == "accuracy" else 1e-12, rtol=0
        )
