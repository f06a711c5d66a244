from __future__ import annotations

import math

import pytest
import torch

from ssl_ray.losses.self_training import combine, cross_entropy


def test_uniform_logits_cost_log_c() -> None:
    logits = torch.zeros(5, 7)
    for targets in (torch.arange(5), torch.full((5, 7), 1 / 7)):
        assert cross_entropy(logits, targets).item() == pytest.approx(math.log(7))


def test_soft_and_hard_agree_on_one_hot() -> None:
    logits, hard = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    one_hot = torch.nn.functional.one_hot(hard, 4).float()
    torch.testing.assert_close(cross_entropy(logits, hard), cross_entropy(logits, one_hot))


def test_smoothing_is_for_hard_targets_only() -> None:
    logits = torch.randn(6, 4)
    hard = torch.tensor([0, 1, 2, 3, 0, 1])
    smoothed = torch.nn.functional.one_hot(hard, 4) * 0.9 + 0.1 / 4
    torch.testing.assert_close(cross_entropy(logits, hard, 0.1), cross_entropy(logits, smoothed))
    torch.testing.assert_close(cross_entropy(logits, smoothed, 0.1), cross_entropy(logits, smoothed))


def test_three_written_forms() -> None:
    """With b labeled and r * b pseudo images the text's form is the mean over all, and the code's (1 + r) times that."""
    b, r = 4, 3
    labeled, pseudo = torch.rand(b), torch.rand(b * r)
    concat = combine(labeled.mean(), pseudo.mean(), r, "concat")
    torch.testing.assert_close(concat, torch.cat([labeled, pseudo]).mean())
    torch.testing.assert_close(combine(labeled.mean(), pseudo.mean(), r, "code"), (1 + r) * concat)
    torch.testing.assert_close(combine(labeled.mean(), pseudo.mean(), r, "algorithm1"), labeled.mean() + pseudo.mean())
