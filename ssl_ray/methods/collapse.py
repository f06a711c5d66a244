"""Whether a self-supervised net still tells images apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ssl_ray.distributed import gather
from ssl_ray.errors import HealthError

LOWEST_SPREAD = 0.05
LOWEST_RANK = 1.5
FEWEST = 16
"""Images from which on a rank means something."""

PATIENCE = 2
"""Looks in a row at which the net must be collapsed before a run stops: early ones may pass."""


def feature_spread(vectors: torch.Tensor) -> float:
    """The standard deviation of L2-normalised vectors [n, d], mean over dimensions, times sqrt(d): 0 where all are the same
    vector, 1 where they fill the sphere (Chen and He, SimSiam, CVPR 2021, section 4.1)."""
    unit = F.normalize(vectors.float(), dim=1)
    return float(unit.std(dim=0, unbiased=False).mean()) * unit.shape[1] ** 0.5


def effective_rank(vectors: torch.Tensor) -> float:
    """exp of the entropy of the singular values of [n, d], normalised to sum to one (Roy and Vetterli, 2007): from 1, all
    on one line, to min(n, d). The vectors are centred first, so that what all have in common does not count."""
    vectors = vectors.float()
    values = torch.linalg.svdvals(vectors - vectors.mean(dim=0))
    share = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))


class Watch(nn.Module):
    """Looks at the backbone's features now and then. Projections would not do: their last batch norm spreads even the noise
    around one single point. How often they were bad in a row is a buffer, so that a restart does not forget it."""

    bad: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bad", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, features: torch.Tensor, step: int, lanes: int = 1) -> dict[str, float]:
        """Spread and effective rank of a step's features, [n, d] on every worker; all workers see the same and decide alike.

        Raises:
            HealthError: the features have been nearly the same at several looks in a row.
        """
        seen = gather(features.float(), lanes)[:512]
        found = {"feature_std": feature_spread(seen)}
        collapsed = found["feature_std"] < LOWEST_SPREAD
        if len(seen) >= FEWEST:
            found["effective_rank"] = effective_rank(seen)
            collapsed = collapsed or found["effective_rank"] < LOWEST_RANK
        self.bad.fill_(int(self.bad) + 1 if collapsed else 0)
        if int(self.bad) >= PATIENCE:
            raise HealthError(
                f"the representations have collapsed at step {step}: all images get nearly the same vector (spread "
                f"{found['feature_std']:.3f} of 1, effective rank {found.get('effective_rank', 0):.1f}); the last checkpoint "
                "is kept. Lower optim.lr, raise the batch, or strengthen the views, and run the stage with --rerun"
            )
        return found
