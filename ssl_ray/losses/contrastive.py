"""Two views of an image are to be near each other, and far from everything else: NT-Xent, and MoCo's InfoNCE.

NT-Xent implements: SimCLR and SimCLRv2 (Chen et al., NeurIPS 2020, section 2) as in the authors' `objective.py`: cosine
similarities over a temperature; a row's denominator holds all other 2N - 1 views of the global batch, its positive
included; the gradient flows through the gather.

The authors' code adds the means of the two views' losses; others take the mean over all 2N rows, which is half of that.
`reduction` has both: they differ for parameters that LARS leaves alone, and for Adam.

Memory (SimCLRv2 section 2: the outputs of a moving average of the net as more negatives). The authors' code leaves it out,
and how the buffered negatives enter the loss is not published. Our reading: they are appended to the denominator of every
row; positives and the negatives of the batch still come from the net that learns, so that the loss stays symmetric.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ssl_ray.distributed import gather, rank, sizes_of
from ssl_ray.settings.pretraining import Reduction

FORBIDDEN = -1e9
"""Stands for the similarity of a view with itself, as in the authors' code."""


def info_nce(
    queries: torch.Tensor, keys: torch.Tensor, queue: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """MoCo's loss (He et al., CVPR 2020, equation 1): a query's own key against all keys of a queue.

    Args:
        queries: float [n, d]; they are normalised here.
        keys: of the same images, float [n, d], normalised, without gradient.
        queue: older keys, float [m, d], normalised.

    Returns:
        The loss, a scalar; and the share of queries that are nearer to their own key than to any other, detached.
    """
    with torch.autocast(queries.device.type, enabled=False):
        wide = torch.promote_types(queries.dtype, torch.float32)
        q = F.normalize(queries.to(wide), dim=1)
        own = (q * keys.to(wide)).sum(dim=1, keepdim=True)
        logits = torch.cat([own, q @ queue.to(wide).T], dim=1) / temperature
        target = torch.zeros(len(q), dtype=torch.int64, device=q.device)
        return F.cross_entropy(logits, target), (logits.argmax(dim=1) == 0).float().mean().detach()


def nt_xent(
    first: torch.Tensor,
    second: torch.Tensor,
    temperature: float,
    memory: torch.Tensor | None = None,
    reduction: Reduction = "sum",
    lanes: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of this worker's rows against the views of all workers.

    Args:
        first, second: projections of two views of the same images, float [n, d]; row i of both is one image.
        memory: more negatives, float [m, d], normalised, without gradient.
        reduction: "sum" of the two views' mean losses (the authors' code), or their "mean".
        lanes: number of lanes that the global batch is cut into.

    Returns:
        The loss, a scalar; and the share of rows whose positive is the nearest of the other views, detached.
    """
    with torch.autocast(first.device.type, enabled=False):
        return _nt_xent(first, second, temperature, memory, reduction, lanes)


def _nt_xent(
    first: torch.Tensor,
    second: torch.Tensor,
    temperature: float,
    memory: torch.Tensor | None,
    reduction: Reduction,
    lanes: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.promote_types(first.dtype, torch.float32)
    a, b = F.normalize(first.to(wide), dim=1), F.normalize(second.to(wide), dim=1)
    all_a, all_b = gather(a, lanes), gather(b, lanes)
    begin = sum(sizes_of(len(a), lanes)[: rank()])
    positive = torch.arange(begin, begin + len(a), device=a.device)
    itself = F.one_hot(positive, len(all_a)).to(torch.bool)
    total, right = a.new_zeros(()), a.new_zeros(())
    for mine, others, same in ((a, all_b, all_a), (b, all_a, all_b)):
        among = (mine @ same.T).div(temperature).masked_fill(itself, FORBIDDEN)
        columns = [(mine @ others.T).div(temperature), among]
        if memory is not None and len(memory):
            columns.append((mine @ memory.to(wide).T).div(temperature))
        total = total + F.cross_entropy(torch.cat(columns, dim=1), positive)
        right = right + (torch.cat(columns[:2], dim=1).argmax(dim=1) == positive).float().mean().detach()
    return (total if reduction == "sum" else total / 2), right / 2
