"""The classification loss of self-training: cross-entropy on labels and on pseudo-labels, combined.

Implements: Noisy Student (Xie et al., CVPR 2020). Its combination exists in three written forms, which weigh the two
streams differently; all three are here by name, and a fourth of another paper:

    algorithm1   mean_labeled + mean_pseudo          Algorithm 1 of the paper
    concat       mean over both streams together     the paper's text, as remembered (not verified)
    code         mean_labeled + r * mean_pseudo      the released `main.py`, r = pseudo : labeled
    alpha        (1 - a) * mean_labeled + a * mean_pseudo      SimCLRv2's mix of labels and distillation (section 2)

`code` equals (1 + r) times `concat` where the two batches stand in the ratio r, so the same learning rate steps wider.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

Combination = Literal["algorithm1", "concat", "code", "alpha"]


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
