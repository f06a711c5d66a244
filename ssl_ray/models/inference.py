"""What all trained models share: preprocessing, precision, and forward passes of one size."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from ssl_ray.machine import check_pixels
from ssl_ray.precision import has_bfloat16
from ssl_ray.settings.views import Preprocess
from ssl_ray.views.channels import Decoding


class Inference(nn.Module, ABC):
    """A net in eval mode, with what its `model.json` says of classes and preprocessing."""

    task = "classification"
    largest_batch = 1024  # that is tried

    def __init__(self, description: dict[str, Any]):
        super().__init__()
        self.classes: list[str] = list(description["classes"])
        self.preprocess = Preprocess.model_validate(description["preprocess"])
        self.decoding = Decoding.model_validate(description.get("decoding", {}))  # as the pictures that it learned from
        self._bfloat16 = False

    @property
    def device(self) -> torch.device:
        return next(itertools.chain(self.parameters(), self.buffers()), torch.empty(0)).device

    def set_precision(self, precision: str) -> None:
        """float32, bfloat16, or auto: bfloat16 where the hardware itself computes in it."""
        self._bfloat16 = precision == "bfloat16" or (precision == "auto" and has_bfloat16(self.device))

    def _batches(
        self, compute: Callable[[torch.Tensor], Any], pixels: np.ndarray, batch: int | None
    ) -> Iterator[tuple[Any, int]]:
        """What the net gives for so many images at a time, and how many of them are real: the last ones are black.

        Args:
            pixels: uint8 [n, S, S, 3].
            batch: None: all at once.
        """
        device = self.device
        for start in range(0, len(pixels), batch or len(pixels) or 1):
            part = pixels[start : start + (batch or len(pixels))]
            count = len(part)
            if batch is not None and count < batch:
                part = np.concatenate([part, np.zeros((batch - count, *part.shape[1:]), np.uint8)])
            # Pixels from Ray's object store are read-only, of which torch warns; a copy costs nothing beside the net.
            images = torch.from_numpy(part if part.flags.writeable else part.copy()).to(device).permute(0, 3, 1, 2)
            with torch.autocast(device.type, torch.bfloat16, enabled=self._bfloat16):
                found = compute(images)
            yield found, count

    @abstractmethod
    def try_out(self, pixels: np.ndarray) -> None:
        """Compute what labelling computes, for its time: uint8 [n, S, S, 3]."""

    def find_batch(self) -> int:
        """The batch, a power of two, that labels most images a second on this device; what does not fit is left out."""
        best, best_rate = 32, 0.0
        size, batch = self.preprocess.size, 32
        check_pixels(batch, size, "preprocess.size")
        while batch <= self.largest_batch:
            pixels = np.zeros((batch, size, size, 3), np.uint8)
            try:
                self.try_out(pixels)
                begin = time.perf_counter()
                for _ in range(2):
                    self.try_out(pixels)
                rate = 2 * batch / (time.perf_counter() - begin)
            except (torch.OutOfMemoryError, MemoryError):
                break
            if rate > 1.05 * best_rate:
                best, best_rate = batch, rate
            elif rate < 0.8 * best_rate:
                break
            batch *= 2
        return best
