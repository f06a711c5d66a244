"""Images with boxes: COCO JSON and PASCAL VOC. This module lists the images and checks the annotations.

As labels of images, it takes the classes of their boxes, several per image. The boxes themselves are read for detection.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Container, Iterable, Iterator
from typing import Any
from xml.etree import ElementTree

from ssl_ray.data.sources.listing import GRAMMAR, IMAGE_SUFFIXES, Listing, composed, mtime_ns, prefix_of, require_folder, rows
from ssl_ray.data.sources.numbers import read_finite, read_whole
from ssl_ray.data.sources.walk import names_below, walk
from ssl_ray.errors import SourceError
from ssl_ray.filesystems import read_file
from ssl_ray.storage import Folder
from ssl_ray.text import lines_of

BOXES_ARE_NO_CLASSES = (
    "holds boxes, not one class an image; give a folder with class sub-folders, Parquet or wds: as labels, or, to evaluate an "
    "encoder on several labels an image, --set images.several_labels=true"
)
BETWEEN = "\x1f"
"""Separator between the classes of an image that has several."""
LIST_KINDS = ("Main", "Segmentation", "Layout")
"""Folders below `ImageSets` in which VOC keeps the lists of its tasks."""
UNNAMED = "image that no annotation names"
NUMBER_BEHIND = re.compile(r"\s+[+-]?\d+$")
IN_IMAGES = re.compile(r"/?JPEGImages/(.+?)(\s+/?Segmentation.+)?")
"""Line of a list with paths, as "/JPEGImages/1.jpg /SegmentationClassAug/1.png"."""


def read_coco(source: str) -> dict[str, Any]:
    """Read the JSON file of `coco:instances.json@images/`. Callers pass the content on, because large files take seconds.

    Raises:
        SourceError: the file is missing or not COCO.
    """
    file, at, folder = source.removeprefix("coco:").rpartition("@")
    if not (file and folder):
        halves = {"the JSON file before the @": file, "the folder of the images": folder}
        lacks = next(half for half, given in halves.items() if not given) if at else "@ and the folder of the images"
        raise SourceError(f"{source} lacks {lacks}; write coco:instances.json@images/")
    try:
        content = json.loads(read_file(file))
    except FileNotFoundError:
        raise SourceError(f"{file} does not exist; give {GRAMMAR}") from None
    except RecursionError:
        raise SourceError(f"{file} is not COCO: its lists are nested too deeply") from None
    except ValueError as error:
        raise SourceError(f"{file} is not JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise SourceError(f"{file} is not COCO: it has no list `images`")
    with contextlib.suppress(KeyError, TypeError, AttributeError):  # entries of other forms are refused later, by name
        _unify_ids(content, "images", "image_id")
        _unify_ids(content, "categories", "category_id")
    return content


def _unify_ids(content: dict[str, Any], list_name: str, key: str) -> None:
    """Turn ids into whole numbers where some are numbers and others text, as tools write them: "1", 1 and 1.0 are one id."""
    entries, users = content.get(list_name, []), content.get("annotations", [])
    if len({type(entry["id"]) for entry in entries} | {type(user[key]) for user in users}) < 2:
        return
    for owner, name in (*((entry, "id") for entry in entries), *((user, key) for user in users)):
        with contextlib.suppress(ValueError):
            owner[name] = read_whole(owner[name], name)


def list_coco(source: str, *, labeled: bool, several: bool = False, content: dict[str, Any] | None = None) -> Listing:
    """List the images that the JSON file of `coco:instances.json@images/` names.

    Args:
        labeled: label images with all their categories; needs `several`.
        content: content of the JSON file, if it has been read (`read_coco`).

    Raises:
        SourceError: a file is missing or not COCO, a name leaves the folder, or an annotation has an unknown category or image.
    """
    if labeled and not several:
        raise SourceError(f"{source} {BOXES_ARE_NO_CLASSES}")
    file, _, folder = source.removeprefix("coco:").rpartition("@")
    content = read_coco(source) if content is None else content
    listing = Listing(source, "folder")
    try:
        named = {str(image["file_name"]): image for image in content["images"]}
        if len(named) < len(content["images"]):
            twice = _twice([str(image["file_name"]) for image in content["images"]])
            raise SourceError(f"{file} names {twice} for two images; make the names unique")
        for what, key in (("images", "id"), ("categories", "id"), ("categories", "name")):
            values = [str(entry[key]) for entry in content.get(what, [])]
            if len(set(values)) < len(values):
                raise SourceError(f"{file}: two of its {what} have the {key} {_twice(values)}; make them unique")
        _check_annotations(file, content, listing)
        classes = _coco_classes(content) if labeled else None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{file} is not COCO: an entry lacks or misuses {error}") from None
    for name in named:
        if name.startswith("/") or ".." in name.split("/") or "://" in name:
            raise SourceError(f"{file}: the file name {name!r} leaves the folder of the images; correct it")
    _add_files(listing, folder, set(named), source, classes)
    return listing


def _coco_classes(content: dict[str, Any]) -> dict[str, set[str]]:
    """Return the categories in each image, by file name."""
    names = {category["id"]: str(category["name"]) for category in content.get("categories", [])}
    files = {image["id"]: str(image["file_name"]) for image in content["images"]}
    found: dict[str, set[str]] = {name: set() for name in files.values()}
    for annotation in content.get("annotations", []):
        found[files[annotation["image_id"]]].add(names[annotation["category_id"]])
    return found


def _twice(names: list[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _check_annotations(file: str, content: dict[str, Any], listing: Listing) -> None:
    sizes = {image["id"]: image for image in content["images"]}
    categories = {category["id"] for category in content.get("categories", [])}
    for annotation in content.get("annotations", []):
        image = sizes.get(annotation["image_id"])
        if image is None:
            raise SourceError(f"{file}: annotation {annotation.get('id')} belongs to no image ({annotation['image_id']})")
        if annotation.get("category_id") not in categories:
            raise SourceError(
                f"{file}: annotation {annotation.get('id')} names the category {annotation.get('category_id')}, which is not "
                "among the categories; add it, or take the annotation out"
            )
        try:
            x, y, width, height = (read_finite(value, "bbox") for value in annotation.get("bbox", (0, 0, 0, 0)))
        except (TypeError, ValueError):
            raise SourceError(
                f"{file}: the bbox of annotation {annotation.get('id')} is {str(annotation['bbox'])[:60]!r}, not four numbers; "
                "correct it, or take it out"
            ) from None
        if "width" not in image:
            continue
        try:
            wide, high = (
                read_finite(image[side], f"the {side} of the image {image['file_name']}") for side in ("width", "height")
            )
        except ValueError as error:
            raise SourceError(f"{file}: {error}; correct it") from None
        if x < 0 or y < 0 or x + width > wide + 1 or y + height > high + 1:
            listing.drop("a box outside its image", f"{image['file_name']} (annotation {annotation.get('id')})")


def voc_folder(source: str) -> tuple[str, str]:
    """Split `voc:VOC2012/@train` into the folder and the name of the list; "" if no list is given."""
    base, at, chosen = source.removeprefix("voc:").rpartition("@")
    return (base if at else chosen).rstrip("/"), chosen if at else ""


def in_list(source: str, kind: str, stems: Container[str]) -> tuple[set[str], set[str]] | None:
    """Read a list of VOC, such as `ImageSets/Main/train.txt`.

    A name in it may hold spaces, have a suffix, or be followed by a number, as in VOC's lists of a class; or it is a path below
    `JPEGImages`, with or without the path of a mask.

    Args:
        kind: folder that is searched first; if the list is not in it, lists of other tasks are used.
        stems: names of the existing images, without suffix, in Unicode form NFC.

    Returns:
        listed names that exist (as in `stems`), and listed names that do not; None if the source names no list.

    Raises:
        SourceError: there is no such list, or it is not text, or none of its images exists.
    """
    base, name = voc_folder(source)
    if not name:
        return None
    for file in (f"{base}/ImageSets/{place}/{name}.txt" for place in sorted(LIST_KINDS, key=lambda place: place != kind)):
        try:
            lines = lines_of(read_file(file), file)
        except FileNotFoundError:
            continue
        break
    else:
        places = " or ".join(f"ImageSets/{place}" for place in LIST_KINDS)
        raise SourceError(f"{source}: {base} has no {name}.txt in {places}; name a list that is there, or leave @{name} out")
    if not lines:
        raise SourceError(f"{file} names no image; correct it")
    found, missing = set(), set()
    for line in lines:
        line = composed(line)
        bare = NUMBER_BEHIND.sub("", line)
        path = IN_IMAGES.fullmatch(line)
        texts = [text for text in (line, bare, path and path[1]) if text]
        stem = next((text for text in (*texts, *map(_no_suffix, texts)) if text in stems), None)
        if stem is None:
            missing.add(bare)
        else:
            found.add(stem)
    if not found:
        raise SourceError(f"{source}: no image that {file} names is in JPEGImages (the first: {lines[0][:100]!r}); correct it")
    return found, missing


def _no_suffix(name: str) -> str:
    return name.rpartition(".")[0] if name.lower().endswith(IMAGE_SUFFIXES) else name


def list_voc(source: str, *, labeled: bool, several: bool = False, kind: str = "Main") -> Listing:
    """List the images below `JPEGImages` of `voc:VOC2012/`, or those of a list: `voc:VOC2012/@train` (`in_list`).

    The annotations below `Annotations` are checked.

    Args:
        labeled: label images with all classes of their annotations; needs `several`.
        kind: folder of lists that is searched first.

    Raises:
        SourceError: a folder or list is missing, or an annotation is damaged.
    """
    base = voc_folder(source)[0]
    if labeled and not several:
        raise SourceError(f"{source} {BOXES_ARE_NO_CLASSES}")
    classes: dict[str, set[str]] = {}
    require_folder(f"{base}/JPEGImages", f"{source} (JPEGImages)")
    listing = Listing(source, "folder")
    annotations = Folder(f"{base}/Annotations")
    images = by_stem(inside for part in _inside(f"{base}/JPEGImages", source) for inside, _ in part)
    there = by_stem(name for names in images.values() for name in names if name.lower().endswith(IMAGE_SUFFIXES))
    listed = in_list(source, kind, there)
    stems = listed[0] if listed else None
    if listed and listed[1]:
        listing.drop("named in a list and not there", min(listed[1]), len(listed[1]))
    for name in names_below(annotations.path, ".xml", listing):
        if stems is not None and composed(name.removesuffix(".xml")) not in stems:
            continue
        root = read_xml(annotations, name)
        try:
            file = described(name, root, images)
        except ValueError as error:
            raise SourceError(f"{annotations.file(name)} {error}; correct it or take it out") from None
        if file in classes:
            raise SourceError(f"{annotations.file(name)} describes {file}, as another annotation does; take it out")
        if not labeled and composed(file.rpartition(".")[0]) not in there:
            listing.drop("annotation without an image", name)
        classes[file] = {str(item.text) for item in root.iterfind("object/name")}
        try:
            width, height = number_of(root, "size/width"), number_of(root, "size/height")
            for box in root.iterfind("object/bndbox"):
                x1, y1, x2, y2 = (number_of(box, corner) for corner in ("xmin", "ymin", "xmax", "ymax"))
                if x1 < 0 or y1 < 0 or x2 > width + 1 or y2 > height + 1:
                    listing.drop("a box outside its image", name)
        except ValueError as error:
            raise SourceError(f"{annotations.file(name)}: {error}; correct it, or take it out") from None
    named = set(classes) if labeled else None
    _add_files(listing, f"{base}/JPEGImages", named, source, classes if labeled else None, stems)
    return listing


def by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names of image files by the name without suffix, in Unicode form NFC."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(composed(name.rpartition(".")[0]), []).append(name)
    return found


def described(name: str, root: ElementTree.Element, images: dict[str, list[str]]) -> str:
    """Return the name of the image that an annotation of VOC describes.

    It is the image with the name of the annotation file, as other readers of VOC take it. Without one, it is the image that
    the annotation names inside, which many tools fill with paths of their own.

    Args:
        images: existing images, by name without suffix.

    Raises:
        ValueError: the image with the name of the file and the one named inside both exist and differ.
    """
    stem, inner = composed(name.removesuffix(".xml")), composed((root.findtext("filename") or "").strip())
    same = images.get(stem, [])
    said = next((file for file in images.get(inner.rpartition(".")[0], []) if composed(file) == inner), None)
    if not same:
        return said or inner or f"{stem}.jpg"
    if said in same:
        return said
    if said:
        raise ValueError(f"has the name of {same[0]}, and names {inner}, which is there, too")
    return same[0]


def read_xml(folder: Folder, name: str) -> ElementTree.Element:
    """Read an annotation of VOC.

    Raises:
        SourceError: it is not XML, or its encoding is unknown.
    """
    try:
        return ElementTree.fromstring(folder.read_bytes(name))
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise SourceError(f"{folder.file(name)} is not XML: {error}; correct it or take it out") from None


def number_of(root: ElementTree.Element, path: str) -> float:
    """Read a number of an annotation; raise ValueError if there is none."""
    text = (root.findtext(path) or "").strip()
    if not text:
        raise ValueError(f"{path} is missing")
    return read_finite(text, path)


def _inside(folder: str, source: str, listing: Listing | None = None) -> Iterator[list[tuple[str, Any]]]:
    """Yield the files of a folder in parts, each with its name inside; the listing counts what is skipped."""
    base = require_folder(folder, f"the folder {folder} of {source}")
    for found in walk(folder, listing):
        yield [(entry.path[len(base) :].lstrip("/"), entry) for entry in found]


def _add_files(
    listing: Listing,
    folder: str,
    named: set[str] | None,
    source: str,
    classes: dict[str, set[str]] | None = None,
    stems: set[str] | None = None,
) -> None:
    """Add the image files of a folder to a listing; count names without a file and files without a name.

    Args:
        named: names with suffix that are taken; None: all.
        classes: classes of every image, by name.
        stems: names without suffix, in Unicode form NFC, that are taken; None: all.
    """
    prefix = prefix_of(folder)
    missing = set(named) if named is not None else set()
    unnamed: dict[str, tuple[str, Any]] = {}  # by name in Unicode form NFC
    num_unnamed = 0

    def add(chosen: list[tuple[str, Any]]) -> None:
        if chosen:
            sizes = [int(entry.size) for _, entry in chosen]
            times = [mtime_ns(entry) for _, entry in chosen]
            paths = [prefix + entry.path for _, entry in chosen]
            names = [inside for inside, _ in chosen]
            several: list[str | None] | None = (
                None if classes is None else [BETWEEN.join(sorted(classes[name])) for name in names]
            )
            listing.rows.append(rows(names, paths, sizes, times, length=sizes, class_name=several))

    for found in _inside(folder, source, listing):
        chosen = []
        for inside, entry in found:
            if stems is not None and composed(inside.rpartition(".")[0]) not in stems:
                continue
            if named is not None and inside in named:
                missing.discard(inside)
                chosen.append((inside, entry))
            elif not inside.lower().endswith(IMAGE_SUFFIXES):
                listing.drop_kind(inside)
            elif named is None:
                chosen.append((inside, entry))
            elif inside.isascii():
                listing.drop(UNNAMED, inside)
            else:
                unnamed[composed(inside)] = (inside, entry)
                num_unnamed += 1
        add(chosen)
    alike = {name: unnamed.pop(composed(name)) for name in sorted(missing) if composed(name) in unnamed}
    add([(name, entry) for name, (_, entry) in alike.items()])
    missing -= set(alike)
    if num_unnamed > len(alike):
        first = min((inside for inside, _ in unnamed.values()), default="")
        listing.drop(UNNAMED, first, num_unnamed - len(alike))
    if missing:
        listing.drop("named in the annotations, but not there", min(missing), len(missing))
    if not len(listing):
        raise SourceError(f"{source}: none of its images is in {folder}; correct the folder")
