"""How good predictions are: one label an image, or several."""

from __future__ import annotations

import numpy as np


def score(logits: np.ndarray, truth: np.ndarray, metric: str) -> float:
    """`top1`: the share of images whose largest logit is the label. `auroc`: the area under the ROC curve, mean over classes.

    Args:
        logits: float [n, C]; any scores whose order means sureness.
        truth: int [n] for top1; 0/1 [n, C] for auroc. A class without a positive or a negative image is left out.
    """
    if metric == "top1":
        return float((logits.argmax(axis=1) == truth).mean())
    from torch import from_numpy
    from torchmetrics.functional.classification import binary_auroc

    areas = []
    for c in range(truth.shape[1]):
        if 0 < truth[:, c].sum() < len(truth):
            # Ranks, since torchmetrics would squash what leaves [0, 1], and large logits would become equal.
            ranks = np.unique(logits[:, c], return_inverse=True)[1] / len(logits)
            areas.append(float(binary_auroc(from_numpy(ranks), from_numpy(truth[:, c].astype(np.int64)))))
    return float(np.mean(areas)) if areas else float("nan")
