"""Photos with boxes, as a user would bring them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ["nut", "bolt"]


def write_coco(folder: Path) -> None:
    """`train.json` of 20 images in `photos/`, all but one with a box, and 9 images without labels in `heap/`."""
    draw = np.random.default_rng(0)
    for name, count in (("photos", 20), ("heap", 9)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(draw.integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(folder / name / f"{index}.jpg")
    content: dict[str, Any] = {
        "images": [{"id": index, "file_name": f"{index}.jpg", "width": 64, "height": 48} for index in range(20)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [5, 5, 20, 20], "area": 400} for i in range(19)
        ],
        "categories": [{"id": 1 + index, "name": name} for index, name in enumerate(CLASSES)],
    }
    (folder / "train.json").write_text(json.dumps(content))
