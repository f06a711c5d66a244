"""The classification loss of self-training: cross-entropy on labels and on pseudo-labels, combined.

Implements: Noisy Student (Xie et al., CVPR 2020). Its combination exists in three written forms, which weigh the two
streams differently; all three are here by name, and two of other papers:

    algorithm1   mean_labeled + mean_pseudo          Algorithm 1 of the paper
    concat       mean over both streams together     the paper's text, as remembered (not verified)
    code         mean_labeled + r * mean_pseudo      the released `main.py`, r = pseudo : labeled
    alpha        (1 - a) * mean_labeled + a * mean_pseudo      SimCLRv2's mix of labels and distillation (section 2)
    normalised   (labeled + a * (avg labeled / avg pseudo) * pseudo) / (1 + a)      *Rethinking Pre-training and Self-training*,
                 as remembered (not verified): avg is a running average over training, and its ratio has no gradient

`code` equals (1 + r) times `concat` where the two batches stand in the ratio r, so the same learning rate steps wider.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ssl_ray.settings.training import Combination


class RunningMeans(nn.Module):
    """Running averages of the two losses: buffers, so that a restart goes on with them.

    The first `1 / (1 - decay)` steps are a plain mean, so that no average begins at zero.
    """

    def __init__(self, decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("means", torch.zeros(2, dtype=torch.float64))  # of labeled and pseudo-labeled images
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, labeled: torch.Tensor, pseudo: torch.Tensor) -> torch.Tensor:
        """Take in the losses of a step (of all workers); returns both averages, float64 [2]."""
        means, steps = self.get_buffer("means"), self.get_buffer("steps")
        weight = (1 - 1 / (steps + 1).double()).clamp(max=self.decay)
        means.lerp_(torch.stack([labeled, pseudo]).to(means), 1 - weight)
        steps += 1
        return means


def normalised(labeled: torch.Tensor, pseudo: torch.Tensor, means: torch.Tensor, alpha: float) -> torch.Tensor:
    """(labeled + alpha * (mean labeled / mean pseudo) * pseudo) / (1 + alpha); `means` float [2] has no gradient."""
    ratio = (means[0] / means[1].clamp(min=1e-12)).detach().to(pseudo.dtype)
    return (labeled + alpha * ratio * pseudo) / (1 + alpha)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy, in float32 or wider.

    Args:
        logits: [n, C].
        targets: int64 [n] (hard) or float [n, C] (soft, rows sum to one). Smoothing applies to hard targets only, as in
            the released code.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if targets.is_floating_point():
        return -(targets * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def combine(labeled: torch.Tensor, pseudo: torch.Tensor, ratio: float, form: Combination, alpha: float = 0.5) -> torch.Tensor:
    """One loss from the mean losses of the two streams; `ratio` is pseudo : labeled images in the batch."""
    if form == "alpha":
        return (1.0 - alpha) * labeled + alpha * pseudo
    if form == "algorithm1":
        return labeled + pseudo
    if form == "concat":
        return (labeled + ratio * pseudo) / (1.0 + ratio)
    return labeled + ratio * pseudo
