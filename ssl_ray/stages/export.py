"""Boxes and masks in the format of other tools."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ssl_ray.artifacts import Artifact, Corpus, PseudoLabels, Selection
from ssl_ray.config import Config
from ssl_ray.data.formats import Labeled, coco, write_voc
from ssl_ray.errors import ConfigError
from ssl_ray.scale import Scale
from ssl_ray.stage import stage
from ssl_ray.storage import Folder
from ssl_ray.tasks import masks
from ssl_ray.tasks.stored import opened, stored


class Exported(Artifact):
    """`instances.json` (COCO), or VOC's folders."""


class ExportConfig(Config):
    format: Literal["coco", "voc"] = "coco"
    # Of boxes, where no selection says more; masks: certainty of a pixel.
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.0


@stage(Exported)
def export(
    config: ExportConfig,
    out: Folder,
    scale: Scale,
    *,
    images: Corpus,
    labels: PseudoLabels,
    selection: Selection | None = None,
) -> dict[str, Any]:
    """Pseudo-labels as COCO JSON (boxes) or in VOC's folders (boxes, masks), under the names of the image files.

    Args:
        selection: what a student sees of them; None: all over `min_score`.

    Raises:
        ConfigError: the labels are classes, or masks that COCO's JSON does not hold.
    """
    task, classes = str(labels.results.get("task", "classification")), list(labels.results["classes"])
    if task == "classification":
        raise ConfigError("classes of images have no COCO or VOC form; their labels/*.parquet open with any Parquet reader")
    if task == "segmentation" and config.format == "coco":
        raise ConfigError("masks are written as VOC's PNG files; set export.format=voc")
    thresholds = [config.min_score] * len(classes) if selection is None else selection.thresholds.tolist()

    def found() -> Iterator[Labeled]:
        seen: set[str] = set()
        for file in labels.files:
            table = labels.read(file)
            paths = images.rows(file.shard, ["path", "image_id", "file_row"])
            for row, item in zip(table["row"].to_pylist(), map(opened, stored(task, table)), strict=True):
                name = file_name(str(paths["image_id"][row].as_py()), config.format, seen)
                if isinstance(item, masks.Mask):
                    yield Labeled(name, masks.Mask(masks.over_thresholds(item, np.array(thresholds))))
                else:
                    yield Labeled(name, item.taken(item.scores >= np.array(thresholds)[item.labels]))

    if config.format == "coco":
        out.write_bytes("instances.json", coco(found(), classes, description=f"labels of {labels.path}"))
        written, where = labels.results["images"], "instances.json"
    else:
        written, where = write_voc(out, found(), classes), "Annotations" if task == "detection" else "SegmentationClass"
    return {"summary": f"{written:,} images in {where} ({config.format.upper()})", "images": written}


def file_name(image_id: str, form: str, seen: set[str]) -> str:
    """The name of an image file in the export; with its role before it, where another image has the name, or else a number
    behind it. VOC's names have to differ without their suffixes, too."""
    whole = [text if "." in text.rsplit("/", 1)[-1] else f"{text}.png" for text in (image_id.split("/", 1)[1], image_id)]
    flat = image_id.replace(".", "_")
    for name in chain(whole, [f"{flat}.png"], (f"{flat}-{number}.png" for number in count(2))):
        key = name.rpartition(".")[0] if form == "voc" else name
        if key not in seen:
            break
    seen.add(key)
    return name
