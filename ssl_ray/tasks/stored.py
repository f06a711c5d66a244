"""What stands in images, as label files hold it. Masks stay packed until they are looked at: some KB, where the pixels of a
photo are megabytes, and a file has thousands."""

from __future__ import annotations

import pyarrow as pa

from ssl_ray.tasks import boxes, masks

Stored = boxes.Boxes | masks.PackedMask


def stored(task: str, table: pa.Table) -> list[Stored]:
    """The rows of a label file of detection or segmentation, in its order."""
    return list(boxes.rows_of(table)) if task == "detection" else list(masks.packed(table))


def opened(item: Stored) -> boxes.Boxes | masks.Mask:
    """A row with its pixels."""
    return item.opened() if isinstance(item, masks.PackedMask) else item
