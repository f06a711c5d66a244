"""Patterns that name many files: `data/*.parquet`, `data/*/part-?.tar`, `data/**/*.parquet`."""

from __future__ import annotations

import fnmatch
import re

import pyarrow.fs as pafs

from ssl_ray.data.sources.listing import GRAMMAR, LEFTOVER, Listing, is_leftover, prefix_of
from ssl_ray.data.sources.walk import walk
from ssl_ray.errors import SourceError
from ssl_ray.storage import file_info, patient, resolve

WILD = re.compile(r"[*?\[]")

SPLITS = {
    "train": "training", "training": "training", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Words in names of files and folders that tell a split, as Hugging Face reads them."""


def fixed_part(source: str) -> str:
    """Return the folder before the first part of a pattern with a wildcard; of one file, its folder."""
    parts = resolve(source)[1].split("/")
    wild = [position for position, part in enumerate(parts) if WILD.search(part)]
    return "/".join(parts[: wild[0]] if wild else parts[:-1])


def matching(source: str, listing: Listing | None = None) -> list[pafs.FileInfo]:
    """List the files that a pattern names, in order of their names. `**` stands for folders at any depth.

    Args:
        listing: counts hidden files and leftovers that the pattern names, too.

    Raises:
        SourceError: there is no such file.
    """
    filesystem, pattern = resolve(source)
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
            selector = pafs.FileSelector(folder, allow_not_found=True)
            for entry in patient(source, lambda selector=selector: filesystem.get_file_info(selector)):  # type: ignore[misc]
                if not fnmatch.fnmatchcase(entry.base_name, part) or (entry.type == pafs.FileType.File) != is_last:
                    continue
                if is_leftover(entry.base_name) and not is_leftover(part):
                    listing.drop(LEFTOVER, entry.path.removeprefix(base).lstrip("/"))
                elif is_last:
                    files.append(entry)
                else:
                    deeper.append(entry.path)
        folders = deeper
    if not files:
        raise SourceError(f"{source}: no such file; give {GRAMMAR}")
    return sorted(files, key=lambda entry: entry.path)


def _fits(names: list[str], parts: list[str]) -> bool:
    if not parts or not names:
        return not parts and not names
    if parts[0] == "**":
        return any(_fits(names[start:], parts[1:]) for start in range(len(names)))
    return fnmatch.fnmatchcase(names[0], parts[0]) and _fits(names[1:], parts[1:])


def refuse_splits(source: str, paths: list[str], label: str) -> None:
    """Raise SourceError if a labeled pattern names files of several splits.

    Args:
        label: key of folders `label=name`, whose names are classes.
    """
    base, splits = fixed_part(source), dict[str, str]()  # split -> its first word
    for path in paths:
        inside = path.removeprefix(base).strip("/").removesuffix(".parquet")
        names = [name for name in inside.split("/") if not name.startswith(f"{label}=")]
        for name in names:
            # A word begins the name or stands alone in it; `train_dogs` is one split, `detrain` none.
            for word in re.findall(r"[a-z]+", name.lower()):
                if word in SPLITS:
                    splits.setdefault(SPLITS[word], word)
                    break
    if len(splits) < 2:
        return
    train, test = splits.get("training"), splits.get("test") or splits.get("validation")

    def pattern(word: str | None) -> str:
        example = next(path for path in paths if re.search(rf"(?<![a-z]){word}(?![a-z])", path.removeprefix(base).lower()))
        inside = example.removeprefix(base).strip("/")
        head, _, last = inside.rpartition("/")
        if re.search(rf"(?<![a-z]){word}(?![a-z])", last.lower()):
            last = last[: re.search(rf"(?<![a-z]){word}(?![a-z])", last.lower()).end()] + "*.parquet"  # type: ignore[union-attr]
        else:
            last = "*.parquet"
        return f"'{prefix_of(source)}{base}/{head + '/' if head else ''}{last}'"

    command = f"--labeled {pattern(train or next(iter(splits.values())))}" + (
        f" --test {pattern(test)}" if train and test else ""
    )
    raise SourceError(
        f"{source} names files of several splits ({', '.join(sorted(splits.values()))}), whose labels do not belong together; "
        f"give one: {command}"
    )
