"""Boxes and masks in the format of other tools."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from ssl_ray.artifacts import Artifact, Corpus, PseudoLabels, Selection
from ssl_ray.config import Config
from ssl_ray.data.formats import Labeled, coco, write_voc
from ssl_ray.errors import ConfigError
from ssl_ray.scale import Scale
from ssl_ray.stage import stage
from ssl_ray.storage import Folder
from ssl_ray.tasks import boxes, masks
from ssl_ray.tasks.stored import opened, stored


class Exported(Artifact):
    """`instances.json` (COCO), or VOC's folders."""


class ExportConfig(Config):
    format: Literal["coco", "voc"] = "coco"
    min_score: float = 0.0  # of boxes, where no selection says more; masks: certainty of a pixel


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
        ConfigError: the labels are classes, or masks that COCO's JSON does not hold, or two images have one name.
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
                name = str(paths["image_id"][row].as_py()).split("/", 1)[1]
                name = name if "." in name.rsplit("/", 1)[-1] else f"{name}.png"
                if name.rpartition(".")[0] in seen:
                    raise ConfigError(f"two labeled images would be called {name} in the export; give them other names")
                seen.add(name.rpartition(".")[0])
                if isinstance(item, masks.Mask):
                    yield Labeled(name, masks.Mask(masks.over_thresholds(item, np.array(thresholds))))
                else:
                    kept = item.scores >= np.array(thresholds)[item.labels]
                    yield Labeled(name, boxes.Boxes(item.size, item.boxes[kept], item.labels[kept], item.scores[kept]))

    if config.format == "coco":
        out.write_bytes("instances.json", coco(found(), classes, description=f"labels of {labels.path}"))
        count, where = labels.results["images"], "instances.json"
    else:
        count, where = write_voc(out, found(), classes), "Annotations" if task == "detection" else "SegmentationClass"
    return {"summary": f"{count:,} images in {where} ({config.format.upper()})", "images": count}
