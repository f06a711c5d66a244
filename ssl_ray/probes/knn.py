"""Weighted nearest neighbours on frozen features."""

from __future__ import annotations

import logging

import numpy as np


def knn_predict(
    bank: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    *,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.1,
    batch: int = 1024,
) -> np.ndarray:
    """Votes of the k nearest labeled vectors by cosine, each with the weight exp(cosine / temperature).

    Implements: the weighted kNN of instance discrimination (Wu et al., CVPR 2018), with the k and temperature that
    contrastive papers use.

    Args:
        bank: float [n, d], labels: int [n], or 0/1 [n, num_classes] where an image may have several.
        queries: float [m, d].
        k: at most n are taken.

    Returns:
        float32 [m, num_classes], rows that sum to one (for several labels an image: the share of the votes for each).
    """
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it tells which instructions it has
    import faiss

    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(_unit(bank))
    found = np.zeros((len(queries), num_classes), np.float32)
    for start in range(0, len(queries), batch):
        near, which = index.search(_unit(queries[start : start + batch]), min(k, len(bank)))
        weight = np.exp((near - near.max(axis=1, keepdims=True)) / temperature)
        weight /= weight.sum(axis=1, keepdims=True)
        part = found[start : start + batch]
        if labels.ndim == 2:
            np.einsum("mk,mkc->mc", weight, labels[which].astype(np.float32), out=part)
        else:
            np.add.at(part, (np.arange(len(part))[:, None], labels[which]), weight)
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.ascontiguousarray(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
