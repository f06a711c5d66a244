"""Whether a self-supervised net still tells images apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ssl_ray.errors import HealthError

LOWEST_SPREAD = 0.05
LOWEST_RANK = 1.5
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


class Watch:
    """Keeps the last step's features, and looks at them when asked. Projections would not do: their last batch norm spreads
    even the noise around one single point."""

    def __init__(self) -> None:
        self._features: torch.Tensor | None = None
        self._bad = 0

    def see(self, features: torch.Tensor) -> None:
        """Backbone features of the step, [n, d]."""
        self._features = features.detach()[:512]

    def measure(self, step: int) -> dict[str, float]:
        """Spread and effective rank of the last step on this worker.

        Raises:
            HealthError: the vectors have been nearly the same at several looks in a row.
        """
        if self._features is None:
            return {}
        found = {"feature_std": feature_spread(self._features), "effective_rank": effective_rank(self._features)}
        collapsed = found["feature_std"] < LOWEST_SPREAD or found["effective_rank"] < LOWEST_RANK
        self._bad = self._bad + 1 if collapsed else 0
        if self._bad >= PATIENCE:
            raise HealthError(
                f"the representations have collapsed at step {step}: all images get nearly the same vector (spread "
                f"{found['feature_std']:.3f} of 1, effective rank {found['effective_rank']:.1f}); the last checkpoint is kept. "
                "Lower optim.lr, raise the batch, or strengthen the views, and run the stage with --rerun"
            )
        return found
