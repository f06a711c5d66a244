"""Checks of label files and quarantine files, in finished and unfinished labelings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ssl_ray.data.labeler import LEAKED, TAKEN_OUT
from ssl_ray.data.ranges import overlapping
from ssl_ray.errors import DamagedError, SourceError
from ssl_ray.label_files import LabelFile, list_label_files
from ssl_ray.schema import QUARANTINE
from ssl_ray.storage import Folder


def tidied(labels: Folder, bad: Folder) -> list[LabelFile]:
    """Remove files that a killed job left incomplete, and return the label files."""
    files = list_label_files(labels)
    for file in overlapping(files):
        labels.remove(file.name)
        files.remove(file)
    # A kill after the quarantine file and before its label file leaves the first alone; the range is labeled again.
    whole = {file.name for file in files}
    for name in bad.names(".parquet"):
        if name not in whole or not _is_readable(bad, name):
            bad.remove(name)
    return files


def forget_unreadable(labels: Folder, bad: Folder) -> None:
    """Remove ranges with unreadable images, so that images that were repaired or removed meanwhile are read again."""
    for name in bad.names(".parquet"):
        reasons = set(bad.read_table(name, ["reason"])["reason"].to_pylist())
        if reasons - {LEAKED, TAKEN_OUT}:
            labels.remove(name)
            bad.remove(name)


def _is_readable(quarantine: Folder, name: str) -> bool:
    """Return whether a quarantine file can be read. Without it, rows are missing and its range is labeled again."""
    try:
        quarantine.read_table(name, schema=QUARANTINE)
    except DamagedError:
        return False
    return True


def wrong_ranges(labels: Folder, bad: Folder, files: list[LabelFile], checked: Mapping[str, Sequence[str]]) -> list[LabelFile]:
    """Find ranges with damaged files, or whose labels and quarantined images do not add up, and remove their files.

    Such ranges are labeled again. Numbers do not add up if an actor of a killed job writes one of the two files while the next
    job cleans up.

    Args:
        checked: columns to read, by file name; of other files only the footer is read.
    """
    there = set(bad.names(".parquet"))

    def fits(file: LabelFile) -> bool:
        try:
            if file.name in checked:
                count = len(file.read(labels, checked[file.name]))
            else:
                count = labels.num_rows(file.name, file.misfit)
            count += bad.num_rows(file.name) if file.name in there else 0
        except DamagedError as error:
            print(f"{str(error).split(';')[0]}; it is computed again", flush=True)
            return False
        return count == file.stop - file.start

    with ThreadPoolExecutor(16) as pool:
        wrong = [file for file, good in zip(files, pool.map(fits, files), strict=True) if not good]
    for file in wrong:
        labels.remove(file.name)
        bad.remove(file.name)
    return wrong


@dataclass
class Quarantine:
    """Counts of the images in a quarantine folder."""

    unreadable: int = 0
    leaked: int = 0  # readable, but also a test image
    taken_out: int = 0  # deleted by the user, where that is allowed
    reasons: Counter[str] = field(default_factory=Counter)
    first: list[dict[str, Any]] = field(default_factory=list)


def quarantined(folder: Folder) -> Quarantine:
    """Count the images in a quarantine folder."""
    found = Quarantine()
    for rows in _quarantine_files(folder):
        for row in rows:
            if row["reason"] == LEAKED:
                found.leaked += 1
            elif row["reason"] == TAKEN_OUT:
                found.taken_out += 1
            else:
                found.unreadable += 1
                found.first += [row] if len(found.first) < 3 else []
            found.reasons[re.split(r"[:(]", row["reason"])[0].strip()] += 1
    return found


def _quarantine_files(folder: Folder) -> Iterator[list[dict[str, Any]]]:
    names = folder.names(".parquet")
    with ThreadPoolExecutor(16) as pool:
        for start in range(0, len(names), 64):
            for table in pool.map(lambda name: folder.read_table(name, schema=QUARANTINE), names[start : start + 64]):
                yield table.to_pylist()


def quarantine_rows(folder: Folder) -> list[dict[str, Any]]:
    """Read all rows of a quarantine folder, in shard and row order."""
    return [row for rows in _quarantine_files(folder) for row in rows]


def check_budget(found: Quarantine, total: int, budget: float, advice: str) -> None:
    """Raise SourceError if more images are unreadable than the budget allows."""
    if found.unreadable > budget * total:
        first = "; ".join(f"{row['image_id']} {row['reason']}" for row in found.first)
        raise SourceError(
            f"{found.unreadable} of {total} images cannot be used, more than the budget of {budget:.1%} ({first}); take "
            f"them out{advice}; what has been labeled is kept"
        )
