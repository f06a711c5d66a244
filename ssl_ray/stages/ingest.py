"""Which images there are: one listing, once, into a manifest of shards. The pixels stay where they are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssl_ray.artifacts import Corpus
from ssl_ray.data.inspection import inspect_images
from ssl_ray.data.leaks import Findings, find
from ssl_ray.data.manifest import ManifestWriter, Part, check_unique, shards_of
from ssl_ray.data.pools import TargetWriter, scene_pools, shown_in, write_pixels
from ssl_ray.data.sources import BETWEEN, ImagesConfig, Listing, list_labeled, list_source
from ssl_ray.errors import SourceError
from ssl_ray.randomness import generator
from ssl_ray.samples import Sample, load_sample
from ssl_ray.scale import Scale
from ssl_ray.schema import NO_LABEL
from ssl_ray.stage import stage
from ssl_ray.storage import Folder
from ssl_ray.subset import num_spare, proportional, sparing, stratified

SPLITS = ("train", "val", "test", "unlabeled")


@stage(Corpus)
def ingest(config: ImagesConfig, out: Folder, scale: Scale) -> dict[str, Any]:
    """List, split and shard.

    Raises:
        SourceError: nothing there, no class folders, labels that do not cover the classes, test classes that have no
            labels, two images with one id, a labeled or test image that cannot be decoded, a test image among the others.
    """
    classes: list[str] = []
    parts: list[Part] = []
    if config.labeled is not None and config.task != "classification":
        pool, test = scene_pools(config, config.labeled, out)
        classes = pool.categories
        none = np.full(len(pool), NO_LABEL, np.int32)
        draws = test is None or config.val_images or config.labels is not None
        parts = _split(config, pool, none, {}, test, shown_in(pool) if draws else [])
        if not any(len(part) for part in parts if part.split == "train"):
            raise SourceError("no labeled image is left for training; lower images.val_images or images.test_images")
    elif config.labeled is not None:
        pool, test = _pools(config, config.labeled, out)
        names = pool.rows.table()["class_name"].to_pylist()
        known = set(names)
        if config.several_labels and test is not None:  # a set of classes of its own is no class without labels
            known |= set(test.rows.table()["class_name"].to_pylist())
        classes = sort_classes(known)
        if len(classes) < 2:
            raise SourceError(
                f"{config.labeled} has {len(classes)} class ({', '.join(classes)}); training needs two or more{_left_out(pool)}"
            )
        number = {name: index for index, name in enumerate(classes)}
        label = np.array([number[name] for name in names], np.int32)
        shown = [set(name.split(BETWEEN)) - {""} for name in names] if config.several_labels else None
        parts = _split(config, pool, label, number, test, shown)
    elif config.test is not None or config.labels is not None or config.val_images:
        raise SourceError("images.test, images.labels and images.val_images need labeled images; give --labeled SOURCE")
    if config.unlabeled is not None:
        listing = list_source(config.unlabeled, config.columns, labeled=False, task=config.task)
        parts.append(Part("unlabeled", "unlabeled", listing))
    if config.needs_unlabeled and not any(part.split == "unlabeled" and len(part) for part in parts):
        raise SourceError("there are no unlabeled images; give --unlabeled SOURCE, or hide labels with --set images.labels=N")
    sets: list[list[int]] | None = None
    if config.several_labels:
        combined = [set(name.split(BETWEEN)) - {""} for name in classes]
        classes = sort_classes(set().union(*combined)) if combined else []
        sets = [sorted(classes.index(name) for name in names) for names in combined]
        _check_sets(parts, classes, sets)
    check_unique(parts)
    inspection = inspect_images(config, parts)
    found = find(config, parts, out)
    targets = TargetWriter(out, config.task, inspection.sizes) if config.task != "classification" else None
    counts = _write(config, parts, found, out, targets)
    used = [value for part in parts if part.split == "train" for value in part.label if value != NO_LABEL]
    per_class = Counter(classes[c] for value in used for c in ([value] if sets is None else sets[value]))
    untested = _untested(parts, classes) if config.task == "classification" and sets is None else {}
    notes = inspection.notes()
    if targets is not None:
        per_class = targets.counted(classes)
        if missing := [name for name in classes if name not in per_class]:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            ignored = targets.ignored()
            notes.append(f"no training image shows {', '.join(missing[:5])}{more}{ignored and f' ({ignored})'}")
    listings = list({id(part.listing): part.listing for part in parts}.values())
    dropped = sum((listing.dropped for listing in listings), Counter[str]())
    examples = {reason: name for listing in reversed(listings) for reason, name in listing.examples.items()}
    dropped += Counter({"has the bytes of another": len(found.duplicates)})
    dropped += Counter({"also a test image": len(found.leaks), "nearly a test image": len(found.near)})
    return {
        "summary": "; ".join([_summary(counts, classes, dropped, untested), *notes]),
        "task": config.task,
        "classes": classes,
        "label_sets": sets,  # with several labels an image: what a label means, as indices of classes
        "images": counts,
        "per_class": dict(per_class),
        "not_in_test": untested,  # classes, with their number of labels
        "dropped": dict(dropped),
        "dropped_examples": examples,
        "small_range": inspection.small_range,  # by source: pictures with few of their values, and how many were looked at
        "not_decoded": inspection.not_decoded,
        "leak_check": "left to labelling" if found.deferred else config.leaks,
    }


def _summary(counts: dict[str, int], classes: list[str], dropped: Counter[str], untested: dict[str, int]) -> str:
    parts = [f"{counts['unlabeled']:,} unlabeled"]
    if classes:
        parts = [f"{counts['train']:,} labeled", *parts, f"{counts['test']:,} test images of {len(classes)} classes"]
    else:
        parts[0] += " images"
    if counts["val"]:
        parts.append(f"{counts['val']:,} for validation")
    if untested:
        first = ", ".join(f"{name} ({count:,} labeled)" for name, count in list(untested.items())[:5])
        parts.append(f"not in test: {first}{f' and {len(untested) - 5} more' if len(untested) > 5 else ''}")
    if dropped:
        parts.append("left out: " + "; ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items())))
    return ", ".join(parts)


def _left_out(listing: Listing) -> str:
    """Return what a listing left out, in brackets for an error; empty if nothing."""
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in listing.dropped.items())
    return reasons and f" (left out: {reasons})"


def sort_classes(names: set[str]) -> list[str]:
    """Numbers as numbers, everything else by name."""
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _pools(config: ImagesConfig, labeled: str, out: Folder) -> tuple[Listing, Listing | None]:
    """The labeled listing and the test listing. Samples become Parquet files first, so that all data has one path."""
    if labeled.startswith("sample:"):
        sample = load_sample(labeled.removeprefix("sample:"))
        pool = _write_sample(sample, "pool", sample.images, sample.labels, out)
        test = None
        if sample.test_images is not None and sample.test_labels is not None:
            test = _write_sample(sample, "test", sample.test_images, sample.test_labels, out)
    else:
        pool, test = list_labeled(labeled, config), None
    if config.test is not None:
        test = list_labeled(config.test, config)
    return pool, test


def _write_sample(sample: Sample, name: str, images: np.ndarray, labels: np.ndarray, out: Folder) -> Listing:
    return write_pixels(out, name, images, [sample.classes[label] for label in labels])


def _part(split: str, role: str, listing: Listing, index: np.ndarray, label: np.ndarray | None, hide: bool = False) -> Part:
    none = np.full(len(index), NO_LABEL, np.int32)
    known = none if label is None else label[index]
    return Part(split, role, listing, index, none if hide else known, known if hide else none)


def _split(
    config: ImagesConfig,
    pool: Listing,
    label: np.ndarray,
    number: dict[str, int],
    test: Listing | None,
    shown: list[set[Any]] | None = None,
) -> list[Part]:
    """Draw test images, then validation images, then labels, by seed; the rest is unlabeled.

    Test and validation images follow the shares of the classes, labels are equally many of every class, and every class
    keeps a training image.

    Args:
        shown: classes in every image, where there may be several.
    """
    rest = np.arange(len(pool))

    def take(count: int, address: str) -> np.ndarray:
        nonlocal rest
        if count > len(rest):
            raise SourceError(
                f"images.{address}={count} is more than the {len(rest)} labeled images that are left (of {len(pool)}, after "
                "images.test_images and images.val_images); lower it"
            )
        if not count:
            return np.empty(0, np.int64)
        if address == "labels" and count == len(rest):
            chosen, rest = rest, rest[:0]
            return chosen
        draw = generator(config.seed, "split", address)
        if shown is not None:
            order, sets = draw.permutation(len(rest)), [shown[position] for position in rest]
            if address == "labels":
                chosen = np.setdiff1d(order, sparing(sets, len(rest) - count, order[::-1]))
            else:
                chosen = sparing(sets, count, order)
        elif address == "labels":
            chosen = stratified(label[rest], count, draw)
        elif count > (spare := num_spare(label[rest])):
            raise SourceError(
                f"images.{address}={count} of {len(rest)} labeled images would leave a class without a training image; at "
                f"most {spare} can be taken, as each of the {len(number)} classes keeps one; lower it, or give more images"
            )
        else:
            chosen = proportional(label[rest], count, draw)
        chosen = rest[chosen]
        rest = np.setdiff1d(rest, chosen)
        return chosen

    parts = []
    if test is not None and config.task != "classification":
        parts.append(_part("test", "test", test, np.arange(len(test)), None))
    elif test is not None:
        names = test.rows.table()["class_name"].to_pylist()
        unknown = sort_classes(set(names) - set(number))
        if unknown:
            raise SourceError(
                f"the test images have classes without labels: {', '.join(unknown[:10])}; the labeled classes are "
                f"{', '.join(list(number)[:20])}"
            )
        known = np.array([number[name] for name in names], np.int32)
        parts.append(_part("test", "test", test, np.arange(len(test)), known))
    else:
        fifth = len(pool) // 5 if shown is not None else min(len(pool) // 5, num_spare(label))
        count = config.test_images if config.test_images is not None else fifth
        if not count:
            advice = "give --test SOURCE, or --set images.test_images=N"
            raise SourceError(f"there are no test images; {advice}{_left_out(pool)}")
        parts.append(_part("test", "labeled", pool, take(count, "test_images"), label))
    parts.append(_part("val", "labeled", pool, take(config.val_images, "val_images"), label))
    wanted = len(rest) if config.labels is None else config.labels
    if shown is None and wanted < len(number):
        raise SourceError(f"{wanted} labels for {len(number)} classes; give at least one label a class")
    parts.append(_part("train", "labeled", pool, take(wanted, "labels"), label))
    parts.append(_part("unlabeled", "labeled", pool, rest, label, hide=True))
    return parts


def _untested(parts: list[Part], classes: list[str]) -> dict[str, int]:
    """Classes without a test image, and their number of labels."""
    tested = {int(c) for part in parts if part.split == "test" for c in part.label}
    have = Counter(int(c) for part in parts if part.split == "train" for c in part.label)
    return {name: have[c] for c, name in enumerate(classes) if c not in tested}


def _check_sets(parts: list[Part], classes: list[str], sets: list[list[int]]) -> None:
    have = {c for part in parts if part.split == "train" for value in part.label for c in sets[value]}
    missing = [name for index, name in enumerate(classes) if index not in have]
    if missing:
        raise SourceError(f"no labeled training image shows {', '.join(missing[:10])}; give more labels, or another seed")


def _write(
    config: ImagesConfig, parts: list[Part], found: Findings, out: Folder, targets: TargetWriter | None
) -> dict[str, int]:
    """The manifest and the list of shards, without what is left out; and what stands in the images, where that is known."""
    gone = pa.array([*found.leaks, *found.near, *found.duplicates], pa.string())
    writer, counts = ManifestWriter(out), dict.fromkeys(SPLITS, 0)
    for split in SPLITS:
        for part in (part for part in parts if part.split == split):
            for shard in shards_of(part, config.shard_rows, config.seed):
                rows = shard
                if len(gone) and split != "test":
                    rows = shard.filter(pc.invert(pc.is_in(shard["image_id"], value_set=gone)))
                if len(rows):
                    if targets is not None:
                        targets.write(writer.num_shards, rows, part)
                    writer.add(rows, part)
                    counts[split] += len(rows)
    writer.close()
    if (config.needs_unlabeled and not counts["unlabeled"]) or (config.labeled is not None and not counts["train"]):
        raise SourceError("no image is left after the duplicates and test images were taken out; give other sources")
    return counts
