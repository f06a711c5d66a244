"""What one stage was measured to need."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Estimate:
    """What one stage was measured to need."""

    stage: str
    does: str  # the stage's function
    images: int = 0  # that the whole stage handles, every time they are seen
    model_s: float = 0.0  # seconds of the model an image, with all that this machine has
    wait_s: float = 0.0  # seconds an image that the model waits for what is made of images anew every time
    loads: int = 0  # images that are read: once each, where they fit into memory
    load_s: float = 0.0  # seconds of each that the model stands still for
    decode_s: float = 0.0  # seconds an image of one thread that reads and decodes
    fresh: int = 0  # images that are decoded: as they are read, or every time, where crops are drawn in decoding
    batch: int = 1  # images that the model sees at once
    fixed_s: float = 0.0  # whatever does not grow with images
    read: int = 0  # bytes
    written: int = 0
    tried_s: float = 0.0  # how long the sample took
    note: str = ""
    times: int = 1  # stages that are one and the same but for their trial
    alike: str = ""  # of trainings: what they do in a step

    def repeat(self, times: int) -> None:
        """So many stages of this kind, as in the trials of a sweep."""
        self.times *= times
        self.images, self.fixed_s = self.images * times, self.fixed_s * times
        self.loads, self.fresh = self.loads * times, self.fresh * times
        self.read, self.written = self.read * times, self.written * times

    def once(self) -> Estimate:
        """One of those that are alike."""
        one = dataclasses.replace(self, times=1)
        for key in ("images", "loads", "fresh", "read", "written"):
            setattr(one, key, getattr(self, key) // self.times)
        one.fixed_s = self.fixed_s / self.times
        return one

    @property
    def seconds(self) -> float:
        """On this machine, without the start of Ray's workers."""
        return self.images * self.model_s + self._data_s + self.fixed_s

    @property
    def bound(self) -> str:
        if not self.images:
            return ""
        return "reading and decoding" if self._data_s > 0.5 * self.images * self.model_s else "the model"

    @property
    def _data_s(self) -> float:
        return self.images * self.wait_s + self.loads * self.load_s


def lend(estimates: Sequence[Estimate]) -> None:
    """Trainings that do the same in a step have the rate of the fastest of their samples: whatever else the machine did makes a
    sample slower, never faster."""
    for item in estimates:
        twins = [other for other in estimates if item.alike and other.alike == item.alike]
        if twins:
            fastest = min(twins, key=lambda other: other.model_s + other.wait_s)
            item.model_s, item.wait_s = fastest.model_s, fastest.wait_s
