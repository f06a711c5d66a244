"""Image files below a folder. In a labeled folder, the first sub-folder is the class."""

from __future__ import annotations

import posixpath
import re

from ssl_ray.data.sources.limit import enough
from ssl_ray.data.sources.listing import IMAGE_SUFFIXES, Listing, escaped, mtime_ns, prefix_of, require_folder, rows
from ssl_ray.data.sources.walk import first_level, is_text, walk
from ssl_ray.errors import SourceError

SPLIT = re.compile(
    r"(train|val|valid|test|dev|eval)(ing|idation|uation)?([-_ ]?(set|data|images|imgs|split|[0-9]+))*", re.IGNORECASE
)
"""Names of folders that hold a split of a data set, not a class."""


def list_folder(source: str, *, labeled: bool) -> Listing:
    """List the image files below a folder, with their classes if `labeled`.

    Raises:
        SourceError: the folder does not exist or holds no images; or, if labeled, an image is outside the class folders, the
            sub-folders are splits, or the name of a class is not UTF-8.
    """
    base, prefix = require_folder(source), prefix_of(source)
    listing = Listing(source, "folder")
    classes = _class_folders(source) if labeled else []
    filled: set[str] = set()
    loose: list[str] = []
    for found in walk(source, listing):
        names, paths, sizes, times, class_names = [], [], [], [], []
        for entry in found:
            inside = entry.path[len(base) :].lstrip("/")
            if not inside.lower().endswith(IMAGE_SUFFIXES):
                listing.drop_kind(inside)
                continue
            first, separator, _ = inside.partition("/")
            if labeled and not separator:
                loose.append(inside)
                continue
            filled.add(first)
            names.append(inside)
            paths.append(prefix + entry.path)
            sizes.append(int(entry.size))
            times.append(mtime_ns(entry))
            class_names.append(first if separator else None)
        if names:
            listing.rows.append(rows(names, paths, sizes, times, length=sizes, class_name=class_names))
        if not labeled and enough(source, len(listing)):
            break
    if loose and not len(listing):
        raise SourceError(
            f"{source} has {len(loose)} images but no class sub-folders; put every image into a folder that is named after its "
            "class, as in folder/cat/1.jpg"
        )
    if loose:
        raise SourceError(
            f"{source} has {len(loose)} images outside the class sub-folders ({escaped(min(loose))}); move them into one or "
            "take them out"
        )
    if not len(listing):
        raise _no_images(source, listing)
    if empty := [name for name in classes if name not in filled]:
        shown = ", ".join(escaped(name) for name in empty[:10]) + (", ..." if len(empty) > 10 else "")
        folders = "class folder" if len(empty) == 1 else "class folders"
        listing.drop(f"{folders} without an image ({shown})", empty[0], len(empty))
    return listing


def _class_folders(source: str) -> list[str]:
    """List the names of the class folders.

    Raises:
        SourceError: the folders are the splits of a data set, or a name is not UTF-8.
    """
    names = first_level(source)
    for name in names:
        if not is_text(name):
            raise SourceError(f"{source}: the name of the class folder {escaped(name)} is not UTF-8; rename it")
    base = source.rstrip("/")
    if splits := _splits(base, names):
        train, test = _train_and_test(splits)
        raise SourceError(
            f"{source} holds the splits of a data set ({', '.join(splits)}), not classes; give one with a folder for "
            f"each class: --labeled {base}/{train}" + (f" --test {base}/{test}" if test else "")
        )
    for name in names[:CHECKED]:
        splits = _splits(f"{base}/{name}", first_level(f"{base}/{name}"))
        if len(splits) > 1:
            train, test = _train_and_test(splits)
            if len(names) == 1:
                way = f"--labeled {base}/{name}/{train}" + (f" --test {base}/{name}/{test}" if test else "")
            else:
                way = f"put the split above the class, as in {base}/{train}/{name}"
            raise SourceError(
                f"{base}/{name} holds the splits of a data set ({', '.join(splits)}), which one class would mix; {way}"
            )
    return names


CHECKED = 3
"""Class folders that are checked for splits inside."""


def _splits(base: str, names: list[str]) -> list[str]:
    """Return the sub-folders of a folder that are splits; none if they may be classes."""
    splits = [name for name in names if SPLIT.fullmatch(name)]
    if len(splits) == len(names):
        return splits
    # Next to other folders, they are splits if all have folders inside.
    return splits if len(splits) > 1 and all(first_level(f"{base}/{name}") for name in splits) else []


def _train_and_test(splits: list[str]) -> tuple[str, str | None]:
    """Return the split to train on, and the one to test on, if there is one."""
    train = min(splits, key=lambda name: (not name.lower().startswith("train"), name))
    others = [name for name in splits if name != train and not name.lower().startswith("train")]
    return train, min(others, key=lambda name: (not name.lower().startswith("test"), name), default=None)


def _no_images(source: str, listing: Listing) -> SourceError:
    """Build the error for a folder without images: what it holds instead, and how to give that."""
    for suffix, before in ((".parquet", ""), (".tar", "wds:")):
        example = listing.examples.get(f"not an image by its suffix ({suffix})")
        if example is not None:
            below = "/**" if "/" in example else ""  # at any depth
            written = f"'{before}{source.rstrip('/')}{below}/*{posixpath.splitext(example)[1]}'"
            return SourceError(f"{source} holds no image files but {suffix} files; give them as {written}")
    reasons = "; ".join(f"{count} {reason}" for reason, count in listing.dropped.items()) or "it is empty"
    return SourceError(f"{source} holds no images ({reasons}); images end in {' '.join(IMAGE_SUFFIXES)}")
