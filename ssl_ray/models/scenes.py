"""A trained detector or segmenter, for use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ssl_ray.errors import ConfigError
from ssl_ray.models.inference import Inference
from ssl_ray.nets import build_described_scene_net
from ssl_ray.nets.layers import layer_features
from ssl_ray.nets.scenes import Detector, merged
from ssl_ray.settings.nets import LayerConfig
from ssl_ray.tasks.boxes import Boxes
from ssl_ray.tasks.masks import Mask
from ssl_ray.views.decode import fit_size, open_rgb, whole
from ssl_ray.views.policy import normalize

Said = Boxes | Mask


class SceneModel(Inference):
    """Says what stands in an image, and where: boxes, or a class for every pixel, at the size of the image as it came.

    `scales`: sizes of the image, as shares of the usual one, whose answers are put together.
    """

    largest_batch = 64  # maps of all strides are held, and time goes by pixels: more images are hardly faster

    def __init__(self, description: dict[str, Any], weights: dict[str, torch.Tensor]):
        super().__init__(description)
        self.task = str(description["task"])
        if self.preprocess.crop != "fit":
            raise ConfigError(f"{self.task} needs preprocess.crop=fit, which keeps places apart, not {self.preprocess.crop}")
        self.net = build_described_scene_net(description)
        self.net.load_state_dict(weights)
        self.eval().requires_grad_(False)
        self.scales: tuple[float, ...] = (1.0,)
        self.layer: LayerConfig | None = None  # of `features`; None: what the backbone gives, pooled

    def forward(self, images: torch.Tensor) -> Any:
        """uint8 [n, 3, S, S] -> what the net gives."""
        return self.net(normalize(images, self.preprocess))

    def try_out(self, pixels: np.ndarray) -> None:
        size = self.preprocess.size
        self.scenes(pixels, np.full((len(pixels), 2), size, np.int32))

    @torch.inference_mode()
    def scenes(self, pixels: np.ndarray, sizes: np.ndarray, batch: int | None = None) -> list[Said]:
        """What stands in some images.

        Args:
            pixels: uint8 [n, S, S, 3], as `fit` leaves them.
            sizes: int32 [n, 2], width and height that they came with.
            batch: always compute on so many images, the last ones black.

        Returns:
            `Boxes` or `Mask`, in pixels of the images as they came.
        """
        found: list[Said] = []
        read = self._boxes if isinstance(self.net, Detector) else self._masks
        for answer, count in self._batches(self._at_scales, pixels, batch):
            found += read(answer, sizes[len(found) : len(found) + count])
        return found

    @torch.inference_mode()
    def features(self, pixels: np.ndarray, batch: int | None = None) -> np.ndarray:
        """uint8 [n, S, S, 3] -> what the backbone gives, pooled, or `layer`; float32 [n, D]; `batch` as for `scenes`. n > 0."""
        layer = self.layer or LayerConfig()

        def compute(images: torch.Tensor) -> torch.Tensor:
            return layer_features(self.net.backbone, normalize(images, self.preprocess), layer)

        return np.concatenate([found[:count].cpu().numpy() for found, count in self._batches(compute, pixels, batch)])

    def _at_scales(self, images: torch.Tensor) -> Any:
        """One answer from all scales: boxes of each, in pixels of the usual size; or the mean of the probabilities."""
        side = images.shape[2]
        answers: list[Any] = []
        for scale in self.scales:
            scaled = images
            if scale != 1.0:
                multiple = self.net.multiple if isinstance(self.net, Detector) else 32
                new = max(multiple, round(side * scale / multiple) * multiple)
                scaled = F.interpolate(images.float(), size=(new, new), mode="bilinear", antialias=True, align_corners=False)
            outputs = self(scaled)
            if isinstance(self.net, Detector):
                ratio = side / scaled.shape[2]
                finite = torch.stack([torch.isfinite(part).flatten(1).all(dim=1) for part in outputs.values()]).all(dim=0)
                said = zip(self.net.boxes(outputs, scaled, alone=len(self.scales) == 1), finite, strict=True)
                answers.append([{**item, "boxes": item["boxes"] * ratio, "finite": good} for item, good in said])
            else:
                probs = outputs.float().softmax(dim=1)
                answers.append(F.interpolate(probs, size=(side, side), mode="bilinear", align_corners=False))
        if isinstance(self.net, Detector):
            return [merged(list(parts), self.net.config) for parts in zip(*answers, strict=True)]
        return torch.stack(answers).mean(dim=0)

    def _boxes(self, answer: list[dict[str, torch.Tensor]], sizes: np.ndarray) -> list[Said]:
        found: list[Said] = []
        for item, (width, height) in zip(answer, sizes.tolist(), strict=False):
            inner = fit_size(width, height, self.preprocess.size)
            factor = np.array([width / inner[0], height / inner[1]] * 2, np.float32)
            boxes = item["boxes"].cpu().numpy().astype(np.float32) * factor
            boxes = np.minimum(boxes, np.array([width, height] * 2, np.float32))
            kept = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(axis=1)
            labels, scores = item["labels"].cpu().numpy().astype(np.int32), item["scores"].cpu().numpy().astype(np.float32)
            found.append(Boxes((width, height), boxes[kept], labels[kept], scores[kept], finite=bool(item["finite"])))
        return found

    def _masks(self, answer: torch.Tensor, sizes: np.ndarray) -> list[Said]:
        found: list[Said] = []
        for probs, (width, height) in zip(answer, sizes.tolist(), strict=False):
            inner = fit_size(width, height, self.preprocess.size)
            sure, classes = surest(probs[:, : inner[1], : inner[0]], (height, width))
            certainty = (sure * 255).round().clamp(0, 255)
            # What is no number is no class either: the labeler puts such an image aside.
            finite = bool(torch.isfinite(sure).all())
            certainty = certainty if finite else torch.zeros_like(certainty)
            found.append(Mask(classes.to(torch.uint8).cpu().numpy(), certainty.to(torch.uint8).cpu().numpy(), finite))
        return found

    def find(self, image: str | Path, over: float = 0.3) -> list[tuple[str, float, tuple[float, float, float, float]]]:
        """What a detector finds in an image file: the name of its class, its score, and x1, y1, x2, y2 in pixels of the image;
        the surest first.

        Args:
            over: the least score.

        Raises:
            ConfigError: a segmenter gives a class to every pixel (`predict`).
        """
        [said] = self.predict(image)
        if not isinstance(said, Boxes):
            raise ConfigError("a segmenter finds no boxes; predict gives a class for every pixel")
        return [
            (self.classes[int(said.labels[i])], float(said.scores[i]), tuple(map(float, said.boxes[i])))  # type: ignore[misc]
            for i in np.argsort(-said.scores, kind="stable")
            if said.scores[i] >= over
        ]

    def predict(self, images: str | Path | Sequence[str | Path]) -> list[Said]:
        """Boxes or masks of image files, in pixels of each."""
        paths = [images] if isinstance(images, str | Path) else list(images)
        pixels, sizes = [], []
        for path in paths:
            image = open_rgb(Path(path).read_bytes(), self.decoding)
            pixels.append(whole(image, self.preprocess))
            sizes.append(image.size)
        return self.scenes(np.stack(pixels), np.array(sizes, np.int32))


def surest(probs: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest probability of every pixel at another size (height, width), float [H, W], and its class, int64 [H, W].

    Class by class: a photo of twelve megapixels with all of its classes at once would be gigabytes.

    Args:
        probs: float [C, h, w].
    """
    if probs.shape[1:] == size:
        sure, classes = probs.max(dim=0)
        return sure, classes
    sure = torch.full(size, -1.0, device=probs.device)
    classes = torch.zeros(size, dtype=torch.int64, device=probs.device)
    for index, plane in enumerate(probs.float()):
        large = F.interpolate(plane[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        better = (large > sure) | large.isnan()
        sure, classes = torch.where(better, large, sure), torch.where(better, index, classes)
    return sure, classes
