"""Labels in other tools' formats: COCO JSON, and PASCAL VOC's folders. What is written can be read back (`coco:`, `voc:`)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ssl_ray.storage import Folder
from ssl_ray.tasks.boxes import Boxes
from ssl_ray.tasks.masks import Mask, to_png

MASK_CLASSES, BOX_CLASSES = "classes.txt", "box_classes.txt"
"""Names beside VOC's folders, one a line: of masks by value, the ground first; of boxes in the order of the labels."""


@dataclass(frozen=True)
class Labeled:
    """An image with its boxes or mask."""

    file_name: str
    found: Boxes | Mask


def coco(images: Iterable[Labeled], categories: list[str], *, description: str = "") -> bytes:
    """COCO JSON of boxes: categories count from 1, boxes are x, y, width, height; `score` stands beside each."""
    named: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        boxes = image.found
        assert isinstance(boxes, Boxes)
        width, height = boxes.size
        named.append({"id": number, "file_name": image.file_name, "width": int(width), "height": int(height)})
        crowd = boxes.ignore if len(boxes.ignore) else np.zeros(len(boxes), bool)
        areas = boxes.areas if len(boxes.areas) else (boxes.boxes[:, 2:] - boxes.boxes[:, :2]).prod(axis=1)
        for corners, label, score, ignored, area in zip(
            boxes.boxes.astype(float), boxes.labels, boxes.scores, crowd, areas, strict=True
        ):
            x1, y1, x2, y2 = (round(float(side), 2) for side in corners)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(label) + 1,
                    "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                    "area": round(float(area), 2),
                    "iscrowd": int(ignored),
                    "score": round(float(score), 4),
                }
            )
    content = {
        "info": {"description": description},
        "images": named,
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for index, name in enumerate(categories, start=1)],
    }
    return json.dumps(content).encode()


def write_voc(out: Folder, images: Iterable[Labeled], categories: list[str]) -> int:
    """PASCAL VOC: `Annotations/*.xml` with `box_classes.txt` for boxes (whole pixels, counted from 1), or
    `SegmentationClass/*.png` with `classes.txt` for masks; returns how many."""
    count, file = 0, BOX_CLASSES
    for image in images:
        stem = image.file_name.rsplit(".", 1)[0]
        if isinstance(image.found, Mask):
            out.write_bytes(f"SegmentationClass/{stem}.png", to_png(image.found.classes))
            file = MASK_CLASSES
        else:
            out.write_bytes(f"Annotations/{stem}.xml", voc_xml(image.file_name, image.found, categories))
        count += 1
    if categories:
        out.write_bytes(file, ("\n".join(categories) + "\n").encode())
    return count


def voc_xml(file_name: str, boxes: Boxes, categories: list[str]) -> bytes:
    """One image's boxes, as VOC writes them."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = file_name
    size = ElementTree.SubElement(root, "size")
    for name, value in (("width", boxes.size[0]), ("height", boxes.size[1]), ("depth", 3)):
        ElementTree.SubElement(size, name).text = str(value)
    hard = boxes.ignore if len(boxes.ignore) else np.zeros(len(boxes), bool)
    for corners, label, difficult in zip(boxes.boxes, boxes.labels, hard, strict=True):
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = categories[int(label)]
        ElementTree.SubElement(item, "difficult").text = str(int(difficult))
        box = ElementTree.SubElement(item, "bndbox")
        first, last = (
            np.floor(corners[:2]).astype(int) + 1,
            np.maximum(np.ceil(corners[2:]), np.floor(corners[:2]) + 1).astype(int),
        )
        for name, value in (("xmin", first[0]), ("ymin", first[1]), ("xmax", last[0]), ("ymax", last[1])):
            ElementTree.SubElement(box, name).text = str(int(value))
    return bytes(ElementTree.tostring(root))
