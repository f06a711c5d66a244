"""Patterns that name many files: `data/*.parquet`, `data/*/part-?.tar`, `data/**/*.parquet`."""

from __future__ import annotations

import fnmatch
import os
import re

import pyarrow.fs as pafs

from ssl_ray.data.sources.listing import GRAMMAR, LEFTOVER, Listing, is_leftover, prefix_of
from ssl_ray.data.sources.walk import DEAD, ODD_NAME, SPECIAL, is_text, walk
from ssl_ray.errors import SourceError
from ssl_ray.filesystems import file_info, patient, resolve
from ssl_ray.paths import is_local

WILD = re.compile(r"[*?\[]")

SPLITS = {
    "train": "training", "training": "training", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Words in names of files and folders that name a split, as Hugging Face reads them."""

TRAIN, TEST = ("training",), ("test", "validation")


def fixed_part(source: str) -> str:
    """Return the folder before the first wildcard of a pattern; for a plain path, the folder of the file."""
    parts = resolve(source)[1].split("/")
    wild = [position for position, part in enumerate(parts) if WILD.search(part)]
    return "/".join(parts[: wild[0]] if wild else parts[:-1])


def matching(source: str, listing: Listing | None = None) -> list[pafs.FileInfo]:
    """List the files that match a pattern, sorted by path. `**` matches folders at any depth.

    Args:
        listing: counts matching files that are skipped, such as hidden files and leftovers.

    Raises:
        SourceError: no file matches.
    """
    pattern = resolve(source)[1]
    if (exact := file_info(source)).type == pafs.FileType.File:
        return [exact]
    listing = Listing(source, "") if listing is None else listing
    base = fixed_part(source)
    parts = pattern.removeprefix(base).strip("/").split("/")
    folders, files = [base or "/"], list[pafs.FileInfo]()
    for position, part in enumerate(parts):
        is_last = position == len(parts) - 1
        if part == "**" and not is_last:
            for folder in folders:
                found = [entry for piece in walk(prefix_of(source) + folder, listing) for entry in piece]
                rest = parts[position:]
                files += [e for e in found if _fits(e.path.removeprefix(folder).strip("/").split("/"), rest)]
            break
        deeper: list[str] = []
        for folder in folders:
            for name, known in _content(source, folder).items():
                path = f"{folder.rstrip('/')}/{name}"
                inside = path.removeprefix(base).lstrip("/")
                if not fnmatch.fnmatchcase(name, part):
                    continue
                if is_leftover(name) and not is_leftover(part):
                    listing.drop(LEFTOVER, inside)
                    continue
                if not is_text(name):
                    listing.drop(ODD_NAME, inside)
                    continue
                entry = known or file_info(prefix_of(source) + path)
                if entry.type == pafs.FileType.Directory and not is_last:
                    deeper.append(path)
                elif entry.type == pafs.FileType.File and is_last:
                    files.append(entry)
                elif entry.type in (pafs.FileType.NotFound, pafs.FileType.Unknown):
                    listing.drop(DEAD if entry.type == pafs.FileType.NotFound else SPECIAL, inside)
        folders = deeper
    if not files:
        reasons = "; ".join(f"{count} {reason}" for reason, count in listing.dropped.items())
        raise SourceError(f"{source}: no such file{reasons and f' ({reasons})'}; give {GRAMMAR}")
    return sorted(files, key=lambda entry: entry.path)


def _content(source: str, folder: str) -> dict[str, pafs.FileInfo | None]:
    """List a folder: names, and their file information where the listing has it. Local names may not be UTF-8."""
    filesystem = resolve(source)[0]
    try:
        if is_local(source):
            return dict.fromkeys(sorted(patient(folder, lambda: os.listdir(folder))))
        selector = pafs.FileSelector(folder, allow_not_found=True)
        return {entry.base_name: entry for entry in patient(source, lambda: filesystem.get_file_info(selector))}
    except FileNotFoundError:
        return {}


def _fits(names: list[str], parts: list[str]) -> bool:
    if not parts or not names:
        return not parts and not names
    if parts[0] == "**":
        return any(_fits(names[start:], parts[1:]) for start in range(len(names)))
    return fnmatch.fnmatchcase(names[0], parts[0]) and _fits(names[1:], parts[1:])


def refuse_splits(source: str, paths: list[str], label: str) -> None:
    """Raise SourceError if a labeled pattern matches files of several splits.

    Args:
        label: key of folders `label=name`, whose values are classes and not splits.
    """
    base = fixed_part(source)
    patterns: dict[str, str] = {}  # by split: a pattern for the files like its first one
    for path in paths:
        *folders, last = path.removeprefix(base).strip("/").removesuffix(".parquet").split("/")
        for position, name in enumerate([*folders, last]):
            found = None if name.startswith(f"{label}=") else _split_word(name)
            if found is not None:
                end = f"{last[: found.end()]}*" if position == len(folders) else "*"
                patterns.setdefault(
                    SPLITS[found.group().lower()], "/".join([prefix_of(source) + base, *folders, f"{end}.parquet"])
                )
                break
    if len(patterns) < 2:
        return
    train, test = (next((patterns[split] for split in order if split in patterns), None) for order in (TRAIN, TEST))
    command = f"--labeled '{train or test}'" + (f" --test '{test}'" if train and test else "")
    raise SourceError(
        f"{source} names files of several splits ({', '.join(sorted(patterns))}), whose labels do not belong together; "
        f"give {command}"
    )


def _split_word(name: str) -> re.Match[str] | None:
    """Find a word that names a split: `train-0` and `data_train` have one, `retrain` has none."""
    return next((word for word in re.finditer(r"[a-zA-Z]+", name) if word.group().lower() in SPLITS), None)
