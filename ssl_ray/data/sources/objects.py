"""Images with boxes or masks from COCO and PASCAL VOC.

Invalid boxes are left out or clipped, and counted by reason. An image without an object is kept, as background. Annotations
that cannot be read or fit no image are refused by name: labels are few, so a wrong one should be corrected.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ssl_ray.data.formats import BOX_CLASSES, MASK_CLASSES
from ssl_ray.data.sources.annotated import (
    by_stem,
    described,
    list_coco,
    list_voc,
    number_of,
    read_coco,
    read_xml,
    voc_folder,
)
from ssl_ray.data.sources.listing import ROWS, Listing, Spool, composed, escaped
from ssl_ray.data.sources.numbers import read_finite, read_flag, read_size, read_whole
from ssl_ray.data.sources.walk import names_below
from ssl_ray.errors import SourceError
from ssl_ray.filesystems import read_file
from ssl_ray.storage import Folder
from ssl_ray.tasks.boxes import Boxes, cleaned
from ssl_ray.tasks.masks import IGNORE, Mask, from_png
from ssl_ray.text import distinct, lines_of
from ssl_ray.views.decode import MAX_PIXELS

BACKGROUND = "background"
"""Class 0 of masks that are painted from COCO's objects."""

VOC_CLASSES = (
    BACKGROUND, "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Classes of VOC's masks, by value, unless a file `classes.txt` or `class_names.txt` next to them names others."""


LABELME_CLASSES = "class_names.txt"
"""File with the classes of masks, as labelme writes it."""


def list_objects(source: str, task: Literal["detection", "segmentation"], *, empty_categories: bool = False) -> Listing:
    """List all annotated images of a source, each with its boxes or mask as target.

    Args:
        empty_categories: keep categories of COCO without objects.

    Raises:
        SourceError: the source has no annotations, or they cannot be read.
    """
    if source.startswith("coco:"):
        content = read_coco(source)
        listing = list_coco(source, labeled=False, content=content)
        file = source.removeprefix("coco:").rpartition("@")[0]
        try:
            _coco_targets(file, content, task, listing, empty_categories)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(f"{file} is not COCO: an entry lacks or misuses {error}") from None
    elif source.startswith("voc:"):
        listing = list_voc(source, labeled=False, kind="Main" if task == "detection" else "Segmentation")
        (_voc_boxes if task == "detection" else _voc_masks)(source, listing)
    else:
        raise SourceError(
            f"{source} holds no boxes or masks; {task} takes coco:instances.json@images/, voc:VOC2012/ or sample:scenes"
        )
    listing.dropped.pop("a box outside its image", None)  # targets count these boxes more exactly
    return _annotated(listing)


def _annotated(listing: Listing) -> Listing:
    """Keep the images that have an annotation, and count the others: of VOC's 17,000, fewer than 3,000 have masks."""
    rows = listing.rows.table()
    known = pa.array([name in listing.targets for name in rows["image_id"].to_pylist()], pa.bool_())
    missing = len(rows) - (known.true_count if len(rows) else 0)
    if missing:
        first = rows["image_id"][known.to_pylist().index(False)].as_py()
        listing.drop("image without an annotation", first, missing)
        listing.rows = Spool(ROWS)
        listing.rows.append(rows.filter(known))
    if not len(listing):
        raise SourceError(f"{listing.source}: no image has an annotation; are the names the same?")
    return listing


def _coco_targets(file: str, content: dict[str, Any], task: str, listing: Listing, empty_categories: bool) -> None:
    categories = list(content.get("categories", []))
    try:
        ids = [read_whole(category["id"], "the id of a category") for category in categories]
        for item in content.get("annotations", []):
            read_whole(item["category_id"], f"the category of annotation {item.get('id')}")
    except ValueError as error:
        raise SourceError(f"{file}: {error}; correct it") from None
    categories = [categories[index] for index in np.argsort(ids, kind="stable")]
    if not categories:
        raise SourceError(f"{file} names no categories; add the list `categories`")
    used = {item["category_id"] for item in content.get("annotations", [])}
    for category in [] if empty_categories or not used else [item for item in categories if item["id"] not in used]:
        listing.drop(f"category without objects ({escaped(str(category['name']))})", file)
        categories.remove(category)
    names = [str(category["name"]) for category in categories]
    number = {category["id"]: index for index, category in enumerate(categories)}
    by_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content.get("annotations", []):
        by_image[annotation["image_id"]].append(annotation)
    listing.categories = names if task == "detection" else [BACKGROUND, *names]
    _few_enough(file, listing.categories, task)
    _check_crowds(file, content, listing)
    for image in content["images"]:
        name, found = str(image["file_name"]), by_image[image["id"]]
        if "width" not in image or "height" not in image:
            raise SourceError(f"{file}: the image {name} lacks its width and height; add them")
        try:
            size = read_size(image["width"], image["height"], MAX_PIXELS)
        except ValueError as error:
            raise SourceError(f"{file}: the image {name}: {error}; correct it") from None
        if task == "segmentation":
            listing.targets[name] = partial(_painted, file, name, size, found, number)
            continue
        missing = next((item for item in found if "bbox" not in item), None)
        if missing is not None:
            raise SourceError(f"{file}: annotation {missing.get('id')} of {name} has no bbox; add it, or take it out")
        sides = [[read_finite(side, "bbox") for side in item["bbox"]] for item in found]
        corners = np.array(sides, np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        labels = np.array([number[item["category_id"]] for item in found], np.int32)
        crowd = np.array([_is_crowd(file, item) for item in found], bool)
        areas = np.array([_area(file, item, side) for item, side in zip(found, sides, strict=True)], np.float32)
        listing.targets[name] = _boxes(listing, name, size, corners, labels, crowd, areas, crowd)


def _is_crowd(file: str, item: dict[str, Any]) -> bool:
    """Return whether an annotation of COCO marks a crowd. Tools write the flag as a number, as true or as text."""
    try:
        return read_flag(item.get("iscrowd", 0), f"iscrowd of annotation {item.get('id')}")
    except ValueError as error:
        raise SourceError(f"{file}: {error}") from None


def _check_crowds(file: str, content: dict[str, Any], listing: Listing) -> None:
    """Count the crowds of a source.

    Raises:
        SourceError: all objects are crowds.
    """
    names = {image["id"]: str(image["file_name"]) for image in content["images"]}
    annotations = content.get("annotations", [])
    crowds = [names[item["image_id"]] for item in annotations if _is_crowd(file, item)]
    if crowds and len(crowds) == len(annotations):
        raise SourceError(
            f"{file}: all {len(crowds):,} objects are crowds (iscrowd is 1), and crowds are not trained on, so nothing is left "
            "to learn; write iscrowd 0 for every single object"
        )
    for name in crowds:
        listing.drop("crowd (iscrowd is 1; not trained on)", name)


def _area(file: str, item: dict[str, Any], sides: list[float]) -> float:
    """Return the area in an annotation of COCO, or that of its box if it has none."""
    if item.get("area") is None:
        return sides[2] * sides[3]
    try:
        return read_finite(item["area"], f"the area of annotation {item.get('id')}")
    except ValueError as error:
        raise SourceError(f"{file}: {error}; correct it, or take it out") from None


def _boxes(
    listing: Listing,
    name: str,
    size: tuple[int, int],
    corners: np.ndarray,
    labels: np.ndarray,
    ignore: np.ndarray,
    areas: np.ndarray,
    crowd: np.ndarray,
) -> Callable[[], Boxes]:
    boxes, kept, reasons = cleaned(size, corners, labels)
    for reason, count in reasons.items():
        listing.drop(reason, name, count)
    scores = np.ones(len(kept), np.float32)
    found = Boxes(size, boxes[kept], labels[kept], scores, ignore[kept], areas[kept], crowd[kept])
    return lambda: found


def _painted(file: str, name: str, size: tuple[int, int], found: list[dict[str, Any]], number: dict[Any, int]) -> Mask:
    """Paint the objects of an image as one mask: smaller ones over larger ones, crowds as `IGNORE`."""
    from faster_coco_eval.core import mask as coco_mask

    width, height = size
    classes = np.zeros((height, width), np.uint8)
    things: list[tuple[int, Any, int, Any]] = []  # pixels, run lengths, class, id of the annotation
    for item in found:
        shape = item.get("segmentation")
        if not shape:
            raise SourceError(f"{file}: annotation {item.get('id')} of {name} has no segmentation; add it, or take it out")
        try:
            if isinstance(shape, list):
                if any(len(polygon) < 6 or len(polygon) % 2 for polygon in shape):
                    raise ValueError("a polygon is a row of x and y of three corners or more")
                corners = [[read_finite(value, "a corner") for value in polygon] for polygon in shape]
                if not (shape := [polygon for polygon in (_near(polygon, width, height) for polygon in corners) if polygon]):
                    continue  # none of it is in the image
                code = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
            elif (stated := [read_whole(side, "the size") for side in shape["size"]]) != [height, width]:
                raise SourceError(
                    f"{file}: the mask of annotation {item.get('id')} is {' x '.join(map(str, stated[::-1]))}, and its image "
                    f"{name} {width} x {height}; correct it"
                )
            elif isinstance(shape["counts"], list):
                if sum(counts := [read_whole(count, "a run length") for count in shape["counts"]]) != height * width:
                    raise ValueError(f"its runs cover {sum(counts)} of {height * width} pixels")
                if min(counts) < 0:
                    raise ValueError("a run length is negative")
                code = coco_mask.frPyObjects(shape, height, width)
            else:
                code = shape
            area = int(coco_mask.area(code))
        except SourceError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise SourceError(f"{file}: the segmentation of annotation {item.get('id')} cannot be read: {error}") from None
        things.append((area, code, IGNORE if _is_crowd(file, item) else number[item["category_id"]] + 1, item.get("id")))
    for _, code, label, number_in_file in sorted(things, key=lambda thing: -thing[0]):
        try:  # one at a time: each is as large as the picture
            classes[coco_mask.decode(code).astype(bool)] = label
        except (ValueError, RuntimeError) as error:
            raise SourceError(f"{file}: the segmentation of annotation {number_in_file} cannot be read: {error}") from None
    return Mask(classes)


def _near(polygon: list[float], width: int, height: int) -> list[float]:
    """Cut a polygon that reaches far beyond its image to a frame around it. Painting takes memory for all of its outline.

    Args:
        polygon: x and y of each corner in turn.

    Returns:
        The corners within the frame; none if nothing of the polygon is left.
    """
    frame = max(width, height)
    corners = np.array(polygon, np.float64).reshape(-1, 2)
    if np.abs(corners).max() <= 4 * frame:
        return polygon
    for axis, side, inward in ((0, -frame, 1), (0, 2 * frame, -1), (1, -frame, 1), (1, 2 * frame, -1)):  # Sutherland, Hodgman
        kept: list[np.ndarray] = []
        for start, end in zip(np.roll(corners, 1, axis=0), corners, strict=True):
            is_inside = [inward * (corner[axis] - side) >= 0 for corner in (start, end)]
            if is_inside[0] != is_inside[1]:
                kept.append(start + (end - start) * (side - start[axis]) / (end[axis] - start[axis]))
            if is_inside[1]:
                kept.append(end)
        if len(kept) < 3:
            return []
        corners = np.array(kept)
    return [float(value) for value in corners.ravel()]


def _few_enough(source: str, categories: list[str], task: str) -> None:
    if task == "segmentation" and len(categories) > IGNORE:
        raise SourceError(
            f"{source} has {len(categories) - 1} categories, and masks of 8 bits hold {IGNORE - 1}; take some out"
        )


def _voc_boxes(source: str, listing: Listing) -> None:
    annotations = Folder(f"{voc_folder(source)[0]}/Annotations")
    images = by_stem(listing.rows.table()["image_id"].to_pylist())
    all_chosen = not voc_folder(source)[1]
    found: set[str] = set()  # classes of all images, so that every list of a data set has the same ones
    read: dict[str, tuple[tuple[int, int], list[tuple[str, list[float], bool]]]] = {}
    for name in names_below(annotations.path, ".xml"):
        chosen = all_chosen or composed(name.removesuffix(".xml")) in images
        try:
            root = read_xml(annotations, name)
            file = described(name, root, images)
            size = read_size(number_of(root, "size/width"), number_of(root, "size/height"), MAX_PIXELS)
            objects = []
            for item in root.iterfind("object"):
                x1, y1, x2, y2 = (number_of(item, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
                label = (item.findtext("name") or "").strip()
                if not label:
                    raise ValueError("an object has no name")
                # VOC counts pixels from one, and the last pixel belongs to the box.
                difficult = read_flag(item.findtext("difficult") or "0", "difficult")
                objects.append((label, [x1 - 1, y1 - 1, x2, y2], difficult))
        except ValueError as error:
            if not chosen:
                continue  # outside the list: only its classes would be used
            if isinstance(error, SourceError):
                raise
            raise SourceError(f"{annotations.file(name)}: {error}; correct it, or take it out") from None
        found |= {label for label, *_ in objects}
        if chosen:
            read[file] = (size, objects)
    listing.categories = _named(Folder(voc_folder(source)[0]), BOX_CLASSES) or sorted(found)
    if not listing.categories:
        raise SourceError(f"{source} has no boxes below Annotations")
    unknown = sorted(found - set(listing.categories))
    if unknown:
        raise SourceError(f"{source}: boxes of the class {unknown[0]!r}, which is not in {BOX_CLASSES}; add it there")
    number = {name: index for index, name in enumerate(listing.categories)}
    for file, (size, objects) in read.items():
        corners = np.array([box for _, box, _ in objects], np.float32).reshape(-1, 4)
        labels = np.array([number[name] for name, *_ in objects], np.int32)
        ignored = np.array([hard for *_, hard in objects], bool)
        areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
        no_crowd = np.zeros(len(objects), bool)
        listing.targets[file] = _boxes(listing, file, size, corners, labels, ignored, areas, no_crowd)


def _voc_masks(source: str, listing: Listing) -> None:
    base = Folder(voc_folder(source)[0])
    folder = base / "SegmentationClass"
    known = names_below(folder.path, ".png", listing)
    if not known:
        raise SourceError(f"{source} has no masks (SegmentationClass/*.png)")
    labelme = [name for name in _named(base, LABELME_CLASSES) if name != "__ignore__"]  # the value 255
    listing.categories = _named(base, MASK_CLASSES) or labelme or list(VOC_CLASSES)
    _few_enough(source, listing.categories, "segmentation")
    masks = {composed(name.removesuffix(".png")): name for name in known}
    stems = {composed(name.rsplit(".", 1)[0]): name for name in map(str, listing.rows.table()["image_id"].to_pylist())}
    for stem, mask in masks.items():
        if stem in stems:
            listing.targets[stems[stem]] = partial(_voc_mask, folder.file(mask), len(listing.categories))
        elif not voc_folder(source)[1]:  # a list leaves others out
            listing.drop("mask without an image", mask)


def _named(folder: Folder, file: str) -> list[str]:
    """Read class names, one per line, from a file next to VOC's folders; return none if there is no file."""
    if not folder.exists(file):
        return []
    return distinct(lines_of(folder.read_bytes(file), folder.file(file)))


def _voc_mask(path: str, num_classes: int) -> Mask:
    try:
        classes = from_png(read_file(path), MAX_PIXELS)
    except ValueError as error:
        raise SourceError(f"the mask {path} {error}; correct it, or take its image out") from None
    unknown = sorted(set(np.unique(classes).tolist()) - {*range(num_classes), IGNORE})
    if unknown:
        raise SourceError(
            f"the mask {path} has the class {unknown[0]}, and there are {num_classes} (0 to {num_classes - 1}, 255: none); "
            f"correct it, or name the classes in {MASK_CLASSES} beside SegmentationClass"
        )
    return Mask(classes)
