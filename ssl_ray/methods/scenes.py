"""One training step of a detector or segmenter: on labels, or on labels and pseudo-labels, with an EMA.

Implements: *Rethinking Pre-training and Self-training* (Zoph et al., NeurIPS 2020): the student learns from people's labels and
pseudo-labels jointly, half of a batch each (recalled), and the two losses are brought to one size by their running averages
(`combination=normalised`; its formula is remembered, not verified).

Differs from the paper: with an EMA, which the recipes switch off for the paper's own settings; on CPUs and GPUs, not TPUs.

A loss is a sum over all workers divided by a count over all workers (matched anchors plus one, or pixels), so that any number
of workers gives the same loss and gradient.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ssl_ray.distributed import share, sum_over_workers
from ssl_ray.losses.boxes import Targets
from ssl_ray.losses.self_training import RunningMeans, combine, cross_entropy, normalised
from ssl_ray.methods.method import Batch, move_average, train_mode
from ssl_ray.nets import build_scene_net, freeze, num_features
from ssl_ray.nets.batchnorm import is_batch_norm, kept_statistics
from ssl_ray.randomness import BatchDraw, seed_of
from ssl_ray.settings.training import DetectionConfig, SegmentationConfig
from ssl_ray.views.policy import augment, normalize


class SceneNet(nn.Module):
    """The net that learns, the moving average that is used, and the running averages of the losses. A classifier of the images
    beside stands on the net's backbone while it learns, and is not kept."""

    def __init__(self, net: Any, average: bool, decay: float, beside: nn.Linear | None = None):
        super().__init__()
        self.net = net
        if beside is not None:
            net.beside = beside  # inside the net, so that it is optimised with it
        self.average = copy.deepcopy(net).eval().requires_grad_(False) if average else None
        self.running = RunningMeans(decay)

    @property
    def used(self) -> nn.Module:
        """The weights for labelling and evaluation."""
        return without_beside(self.average if self.average is not None else self.net)


def without_beside(net: nn.Module) -> nn.Module:
    """The detector or segmenter alone."""
    if "beside" not in dict(net.named_children()):
        return net
    alone = copy.copy(net)
    alone._modules = {name: module for name, module in net._modules.items() if name != "beside"}
    return alone


class SceneTraining:
    """The method, over `DetectionConfig` or `SegmentationConfig`. Its views are made while decoding."""

    def __init__(self, config: DetectionConfig | SegmentationConfig, num_classes: int, beside_classes: int = 0):
        """
        Args:
            beside_classes: of the images beside, for joint training.
        """
        self.config = config
        self.num_classes, self.beside_classes = num_classes, beside_classes
        self._norms: list[str] = []

    def build(self, start: dict[str, torch.Tensor] | None = None) -> SceneNet:
        """A fresh model; `start` holds weights to begin with: of the same net, or of any net around the same backbone."""
        torch.manual_seed(seed_of(self.config.seed, "init") % 2**63)
        net = build_scene_net(self.config.net, self.config.head, self.num_classes, load=start is None)
        if start is not None:
            net.begin_with(start, fresh_head=self.config.fresh_head)
        beside = None
        # Norms that scenes pass: their running statistics are for scenes alone, which the net is kept for. With those of single
        # things mixed in, a segmenter lost nearly half of its mIoU.
        self._norms = [
            name
            for name, module in net.backbone.named_modules()
            if is_batch_norm(module) and any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        ]
        if self.config.beside is not None:
            net.backbone.requires_grad_(True)  # its last layers too, which no map needs
            beside = nn.Linear(num_features(net.backbone), self.beside_classes)
        freeze(net.backbone, self.config.freeze)
        return SceneNet(net, self.config.ema is not None, self.config.decay, beside)

    def loss(self, model: SceneNet, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of this worker's part, and metrics as detached scalars: both streams' losses and their parts."""
        noise = model.net.noise
        noise.draw = BatchDraw((self.config.seed, "noise", step), batch.total, batch.rows)
        images = normalize(batch.images, self.config.preprocess)
        outputs = model.net(images)
        noise.draw = None
        count = _count(batch.labeled) if isinstance(batch.labeled, dict) else 0
        metrics: dict[str, torch.Tensor] = {}
        labeled = pseudo = None
        if isinstance(batch.labeled, dict):
            labeled = self._mean(model.net, _rows(outputs, 0, count), images[:count], batch.labeled, "labeled", metrics)
        if isinstance(batch.pseudo, dict):
            pseudo = self._mean(model.net, _rows(outputs, count, len(images)), images[count:], batch.pseudo, "pseudo", metrics)
        total = self._combined(model, labeled, pseudo, metrics)
        if self.config.beside is not None:
            total = total + self.config.beside.weight * self._classified(model, batch, step, metrics)
        return total, metrics

    def _combined(
        self,
        model: SceneNet,
        labeled: torch.Tensor | None,
        pseudo: torch.Tensor | None,
        metrics: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """One loss of the two streams."""
        if labeled is None or pseudo is None:
            alone = labeled if labeled is not None else pseudo
            assert alone is not None
            return alone
        if self.config.combination != "normalised":
            return combine(labeled, pseudo, self.config.ratio, self.config.combination, self.config.alpha)
        part = share(self.config.lanes)
        means = model.running.update(sum_over_workers(part * labeled.detach()), sum_over_workers(part * pseudo.detach()))
        metrics |= {"mean_loss_labeled": means[0].clone(), "mean_loss_pseudo": means[1].clone()}
        return normalised(labeled, pseudo, means, self.config.alpha)

    def _classified(self, model: SceneNet, batch: Batch, step: int, metrics: dict[str, torch.Tensor]) -> torch.Tensor:
        """The cross-entropy of the images beside."""
        beside = self.config.beside
        assert beside is not None
        assert batch.beside is not None
        draw = BatchDraw((self.config.seed, "views beside", step), beside.batch, batch.beside.rows)
        views = augment(batch.beside.images, beside.view, draw)
        model.net.noise.draw = BatchDraw((self.config.seed, "noise beside", step), beside.batch, batch.beside.rows)
        norms: Any = [model.net.backbone.get_submodule(name) for name in self._norms]
        with kept_statistics(norms):
            logits = model.net.beside(model.net.backbone(normalize(views, beside.preprocess)))
        model.net.noise.draw = None
        loss = cross_entropy(logits, batch.beside.labeled, beside.label_smoothing)
        metrics["loss_beside"] = loss.detach()
        metrics["accuracy_beside"] = (logits.argmax(1) == batch.beside.labeled).float().mean()
        return loss

    def _mean(
        self, net: Any, outputs: Any, images: torch.Tensor, targets: Found, stream: str, metrics: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of one stream: sums over its images, divided by this worker's share of what all workers counted."""
        parts, counted = net.losses(outputs, images, _as_targets(targets))
        divisor = sum_over_workers(counted.float())
        divisor = divisor + 1 if self.config.task == "detection" else divisor.clamp(min=1)
        divisor = divisor * share(self.config.lanes)  # the loop weights losses by this share
        total: torch.Tensor = torch.stack(list(parts.values())).sum() / divisor
        metrics[f"loss_{stream}"] = total.detach()
        if len(parts) > 1:
            metrics |= {f"{name}_{stream}": value.detach() / divisor for name, value in parts.items()}
        return total

    def after_step(self, model: SceneNet, step: int) -> None:
        """Move the average, with the ramp of `SelfTraining`."""
        if model.average is not None and self.config.ema is not None:
            move_average(model.average, model.net, min(self.config.ema, (1 + step) / (10 + step)))

    def set_training(self, model: SceneNet) -> None:
        """Training mode; frozen batch norms keep their statistics."""
        train_mode(model.net)

    def measure(self, model: SceneNet, step: int) -> dict[str, float]:
        return {}

    def describe(self) -> dict[str, Any]:
        """What is needed to rebuild the net for inference."""
        return {
            "task": self.config.task,
            "net": self.config.net.model_dump(mode="json"),
            "head": self.config.head.model_dump(mode="json"),
            "preprocess": self.config.preprocess.model_dump(mode="json"),
            "num_classes": self.num_classes,
        }


Found = dict[str, torch.Tensor]
"""What stands in the images of one stream: `boxes` float32 [K, 4] and `labels` int64 [K], image after image, and `counts`
int64 [n], how many are in each; or `mask`, uint8 [n, S, S]."""


def _count(found: Found) -> int:
    """How many images that is."""
    return len(found["mask"] if "mask" in found else found["counts"])


def _as_targets(found: Found) -> Targets | torch.Tensor:
    """As the net's loss wants it."""
    if "mask" in found:
        return found["mask"]
    counts = found["counts"].tolist()
    pairs = zip(found["boxes"].split(counts), found["labels"].split(counts), strict=True)
    return [{"boxes": boxes, "labels": labels} for boxes, labels in pairs]


def _rows(outputs: Any, start: int, stop: int) -> Any:
    if isinstance(outputs, dict):
        return {key: value[start:stop] for key, value in outputs.items()}
    return outputs[start:stop]
