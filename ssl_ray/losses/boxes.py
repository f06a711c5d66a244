"""The losses of one-stage detectors: which anchor looks for which box, focal loss, and the loss of its corners.

Implements: RetinaNet (Lin et al., ICCV 2017) as in the released detection code of *Rethinking Pre-training and Self-training*:
sums over the batch divided by the matched anchors of the batch plus one, focal loss with alpha 0.25 and gamma 1.5, the mean
over the four encoded corners of their Huber loss (delta 0.1) times 50, anchors matched from an IoU of 0.5 on and background
below it. FCOS (Tian et al., ICCV 2019) has torchvision's own losses.

Differs from torchvision's RetinaNet: that one divides by image and not by batch, has gamma 2, and an L1 loss of the corners.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ssl_ray.settings.nets import BoxLossConfig

Targets = list[dict[str, torch.Tensor]]
"""For every image `boxes`, float32 [k, 4], corners in pixels, and `labels`, int64 [k]."""


BACKGROUND, BETWEEN = -1, -2


def match_anchors(anchors: torch.Tensor, targets: Targets, config: BoxLossConfig) -> list[torch.Tensor]:
    """Match anchors with boxes: int64 [A] per image, the index of a box, BACKGROUND or BETWEEN.

    Every box is forced on the first anchor that overlaps it most, however little; the first of several boxes gets an anchor
    that all of them overlap most. With `forced="torchvision"`, such an anchor keeps the box that it overlaps most.
    """
    from torchvision.models.detection._utils import Matcher
    from torchvision.ops import box_iou

    matcher = Matcher(config.match, config.unmatch, allow_low_quality_matches=config.forced == "torchvision")
    matches = []
    for target in targets:
        num_boxes = len(target["boxes"])
        if not num_boxes:
            matches.append(torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device))
            continue
        overlap = box_iou(target["boxes"], anchors)  # [k, A]
        match = matcher(overlap)
        if config.forced == "released":
            best, anchor = overlap.max(dim=1)
            number = torch.arange(num_boxes, device=anchors.device).where(best > 0, num_boxes)
            forced = torch.full_like(match, num_boxes).scatter_reduce(0, anchor, number, "amin")
            match = forced.where(forced < num_boxes, match)
        matches.append(match)
    return matches


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Sums over very many anchors or pixels are no work for bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def retina_losses(
    outputs: dict[str, torch.Tensor], anchors: torch.Tensor, targets: Targets, coder: Any, config: BoxLossConfig
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Sums over all images, to be divided.

    Args:
        outputs: `cls_logits` [n, A, C] and `bbox_regression` [n, A, 4].
        anchors: float32 [A, 4], the same for all images.
        coder: torchvision's `BoxCoder`.

    Returns:
        The sums `classes` and `corners`, and the number of matched anchors.
    """
    from torchvision.ops import generalized_box_iou_loss

    logits, regression = at_least_float32(outputs["cls_logits"]), at_least_float32(outputs["bbox_regression"])
    matched = torch.stack(match_anchors(anchors, targets, config))  # [n, A]
    positive = matched >= 0
    image, anchor = positive.nonzero(as_tuple=True)
    counts = [len(target["labels"]) for target in targets]
    first = torch.tensor([0, *counts[:-1]], device=matched.device).cumsum(0)
    boxes, labels = (torch.cat([target[key] for target in targets]) for key in ("boxes", "labels"))
    which = first[image] + matched[image, anchor]
    counted = matched != BETWEEN if config.unmatch < config.match else None
    focal = focal_loss(logits, (image, anchor, labels[which]), counted, config.alpha, config.gamma)
    if config.corners == "giou":
        said = coder.decode_single(regression[image, anchor], anchors[anchor])
        corners = generalized_box_iou_loss(said, boxes[which], reduction="sum")
    else:
        true = coder.encode_single(boxes[which], anchors[anchor])
        corners = F.huber_loss(regression[image, anchor], true.to(regression.dtype), reduction="sum", delta=config.delta)
        corners = corners / 4  # the released loss divides by the positives times four
    return {"classes": focal, "corners": config.box_weight * corners}, positive.sum()


def focal_loss(
    logits: torch.Tensor,
    positive: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    counted: torch.Tensor | None,
    alpha: float,
    gamma: float,
) -> torch.Tensor:
    """The sum of the focal losses (Lin et al., ICCV 2017, section 3) over all anchors and classes.

    As torchvision's `sigmoid_focal_loss`, in fewer passes over the logits: nearly all of them are background, and the
    few others are put right one by one.

    Args:
        logits: float32 [n, A, C].
        positive: image, anchor and class of what is to be found, int64 [m] each, no place twice.
        counted: bool [n, A], the anchors that count; None: all. Positive ones do.
    """

    everywhere = logits.sigmoid().pow(gamma) * F.softplus(logits)
    if counted is not None:
        everywhere = everywhere * counted[..., None]
    there = logits[positive]
    missed = (-there).sigmoid().pow(gamma) * F.softplus(-there)
    taken = there.sigmoid().pow(gamma) * F.softplus(there)  # which they have been counted as
    return (1 - alpha) * (everywhere.sum() - taken.sum()) + alpha * missed.sum()
