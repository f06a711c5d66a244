"""Labeled images with boxes or masks: where they come from, and their targets as files that look like label files."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ssl_ray.data.manifest import Part
from ssl_ray.data.sources import ImagesConfig, list_labeled
from ssl_ray.data.sources.listing import LISTING_THREADS, Listing
from ssl_ray.data.sources.listing import rows as listing_rows
from ssl_ray.data.sources.objects import BACKGROUND
from ssl_ray.errors import SourceError
from ssl_ray.filesystems import file_info
from ssl_ray.label_files import LabelFile
from ssl_ray.samples import load_scenes
from ssl_ray.samples.scenes import Scenes
from ssl_ray.storage import Folder
from ssl_ray.tasks import boxes, masks


def scene_pools(config: ImagesConfig, labeled: str, out: Folder) -> tuple[Listing, Listing | None]:
    """The labeled listing and the test listing, in the same categories.

    Raises:
        SourceError: the sources cannot be read, or the test images have a category that the labeled ones have not.
    """
    test: Listing | None = None
    if labeled.startswith("sample:"):
        sample = load_scenes(labeled.removeprefix("sample:"))
        names = sample.classes if config.task == "detection" else [BACKGROUND, *sample.classes]
        pool = _written(out, "pool", sample.train, names, config.task)
        test = _written(out, "test", sample.test, names, config.task)
    else:
        pool = list_labeled(labeled, config)
    if config.test is not None:
        test = list_labeled(config.test, config)
    if test is not None and test.categories != pool.categories:
        _rename(test, pool.categories)
    return pool, test


def _rename(test: Listing, categories: list[str]) -> None:
    """Test targets in the numbers of the labeled categories.

    Raises:
        SourceError: a category that the labeled images have not.
    """
    unknown = [name for name in test.categories if name not in categories]
    if unknown:
        raise SourceError(
            f"the test images have categories that the labeled ones have not: {', '.join(unknown[:10])}; the labeled ones have "
            f"{', '.join(categories[:20])}; --set images.empty_categories=true keeps categories that have no objects"
        )
    number = np.array([categories.index(name) for name in test.categories] or [0])

    def renamed(target: Any) -> Any:
        found = target()
        if isinstance(found, masks.Mask):
            table = np.full(256, masks.IGNORE, np.uint8)
            table[: len(number)] = number
            return masks.Mask(table[found.classes])
        return boxes.Boxes(
            found.size, found.boxes, number[found.labels].astype(np.int32), found.scores, found.ignore, found.areas, found.crowd
        )

    test.targets = {name: partial(renamed, target) for name, target in test.targets.items()}
    test.categories = categories


def write_pixels(out: Folder, name: str, images: np.ndarray, class_name: list[str] | None) -> Listing:
    """Images of a sample, uint8 [n, H, W] or [n, H, W, 3], as a Parquet file in the corpus, so that all data has one path."""
    file, count = f"pixels/{name}.parquet", len(images)
    out.write_table(
        file, pa.table({"image": pa.array([masks.to_png(pixels) for pixels in images], pa.binary())}), row_group_size=1000
    )
    listing = Listing(source=f"sample ({name})", format="parquet", image_column="image")
    listing.rows.append(
        listing_rows(
            [str(index) for index in range(count)],
            [file] * count,
            [int(file_info(out.file(file)).size)] * count,
            [-1] * count,  # ours: a root may be copied elsewhere
            file_row=range(count),
            class_name=None if class_name is None else list(class_name),
        )
    )
    return listing


def _written(out: Folder, name: str, scenes: Scenes, categories: list[str], task: str) -> Listing:
    listing = write_pixels(out, name, scenes.images, None)
    listing.categories = categories

    def target(index: int) -> Any:
        if task == "segmentation":
            return masks.Mask(scenes.masks[index])
        found = scenes.boxes[index]
        height, width = scenes.images.shape[1:3]
        areas = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
        count = len(found)
        return boxes.Boxes(
            (width, height), found, scenes.labels[index], np.ones(count, np.float32), np.zeros(count, bool), areas
        )

    listing.targets = {str(index): partial(target, index) for index in range(len(scenes.images))}
    return listing


def _labels(target: boxes.Boxes | masks.Mask) -> np.ndarray:
    """Return the class of every box that is trained on, or of every pixel that has one."""
    if isinstance(target, masks.Mask):
        return target.classes[target.classes != masks.IGNORE]
    return target.labels[~target.ignore] if len(target.ignore) else target.labels


def shown_in(listing: Listing) -> list[set[int]]:
    """Return the classes in every image, in the order of the listing."""
    targets = (listing.targets.get(name) for name in listing.rows.table()["image_id"].to_pylist())
    with ThreadPoolExecutor(LISTING_THREADS) as pool:  # threads, because each mask is a file
        return list(pool.map(lambda target: set() if target is None else set(np.unique(_labels(target())).tolist()), targets))


AT_ONCE = 64
"""Images whose masks are held as pixels."""


class TargetWriter:
    """Writes what stands in the images of a shard; hidden labels go to a folder of their own."""

    def __init__(self, out: Folder, task: str, sizes: dict[str, tuple[int, int]] | None = None):
        """
        Args:
            sizes: width and height of image files, upright, by path; as far as they are known.
        """
        self._out, self._task, self._sizes = out, task, sizes or {}
        self._count: Counter[int] = Counter()  # objects, or pixels, of the training images by class
        self._num_pixels = self._num_ignored = 0  # in masks of training images; ignored: IGNORE

    def write(self, shard: int, images: pa.Table, part: Part) -> None:
        """
        Args:
            images: rows of the manifest.

        Raises:
            SourceError: what stands in an image belongs to one of another size.
        """
        names = [name.split("/", 1)[1] for name in images["image_id"].to_pylist()]
        paths = images["path"].to_pylist()
        targets = part.listing.targets
        if not targets:  # unlabeled images without hidden labels
            return
        ids, tables = images["image_id"].combine_chunks(), []
        for start in range(0, len(names), AT_ONCE):
            found = [targets[name]() for name in names[start : start + AT_ONCE]]
            for item, path in zip(found, paths[start:], strict=False):
                self._fits(item, path)
            rows = np.arange(start, start + len(found), dtype=np.int32)
            if self._task == "detection":
                tables.append(boxes.columns(ids[start : start + len(found)], shard, rows, found, targets=True))
            else:
                tables.append(masks.columns(ids[start : start + len(found)], shard, rows, found))
            if part.split == "train":
                self._counts(found)
        folder = "truth" if part.split == "unlabeled" else "targets"
        self._out.write_table(f"{folder}/{LabelFile(shard, 0, len(names)).name}", pa.concat_tables(tables))

    def _fits(self, item: Any, path: str) -> None:
        size = self._sizes.get(path, item.size)
        if tuple(item.size) != size:
            raise SourceError(
                f"{path} is {size[0]} x {size[1]} when upright, and its annotation is for "
                f"{item.size[0]} x {item.size[1]}; correct the annotation, or take the image out"
            )

    def _counts(self, found: list[Any]) -> None:
        for item in found:
            classes, counts = np.unique(_labels(item), return_counts=True)
            self._count.update(dict(zip(classes.tolist(), counts.tolist(), strict=True)))
            if isinstance(item, masks.Mask):
                self._num_pixels += item.classes.size
                self._num_ignored += int((item.classes == masks.IGNORE).sum())

    def counted(self, classes: list[str]) -> Counter[str]:
        """Count objects, or pixels, of the training images by class.

        Raises:
            SourceError: no training image shows an object, or all masks show the same single class.
        """
        if not self._count:
            raise SourceError("no labeled training image shows an object that is trained on; give others, or more")
        missing = [name for index, name in enumerate(classes) if index not in self._count]
        if self._task == "segmentation" and missing and len(self._count) < 2:
            [only] = self._count
            first = ", ".join(missing[:5])
            cause = f"; {self.ignored()}; paint {first} with its own number" if self._num_ignored else ""
            raise SourceError(
                f"the masks of the training images show {classes[only]!r} alone, and no {first}{cause} (the first class of the "
                "list is 0, the next is 1), or give masks that show more"
            )
        return Counter({classes[index]: count for index, count in sorted(self._count.items())})

    def ignored(self) -> str:
        """Return a note on the pixels without a class; empty if there are none."""
        if not self._num_ignored:
            return ""
        share = self._num_ignored / self._num_pixels
        return f"{masks.IGNORE} means no class, and covers {share:.1%} of their pixels"
