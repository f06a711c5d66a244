"""The columns of every artifact. Rows are columns, never objects: any Parquet reader opens them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

NO_LABEL = -1
"""Stands in `label` and `truth` where an image has none."""

SHARDS = pa.schema(
    [
        ("shard", pa.int32()),
        ("split", pa.string()),  # train, val, test or unlabeled: no shard mixes splits
        ("format", pa.string()),  # how bytes are read: folder (one file an image), parquet, or tar
        ("num_rows", pa.int32()),
        ("image_column", pa.string()),  # parquet only
    ]
)
"""One row a shard: what is needed to plan work without opening the manifest."""

MANIFEST = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),  # the image file, or the Parquet or tar file that holds the image
        ("file_row", pa.int64()),  # row of the Parquet file, number of the tar member; -1 for an image file
        ("offset", pa.int64()),  # where the bytes begin in a tar file; -1 elsewhere
        ("length", pa.int64()),  # bytes of the encoded image; -1 in a Parquet file, which does not tell without reading
        ("label", pa.int32()),  # index into the corpus's classes; NO_LABEL where there is none
        ("truth", pa.int32()),  # a label that training never sees (samples only), for measuring pseudo-labels
        ("size", pa.int64()),  # bytes of the file when it was listed, to notice a source that changed
        ("mtime", pa.int64()),  # when the file was last changed, ns since the epoch; -1: not known, or ours
    ]
)
"""One row an image. `manifest/NNNNNN.parquet` holds MANIFEST_SHARDS shards, one a row group."""

MANIFEST_SHARDS = 512
"""Shards of one manifest file: the footer of one file for 50,000 shards would be read by every worker."""

TEST_HASHES = pa.schema([("image_id", pa.string()), ("hash", pa.binary(16))])
"""Content hashes of test images, so that labelling notices one that also stands among the unlabeled."""

QUARANTINE = pa.schema([("image_id", pa.string()), ("shard", pa.int32()), ("row", pa.int32()), ("reason", pa.string())])
"""Images that could not be decoded, and why."""


def classification_labels(num_classes: int, top_k: int | None = None) -> pa.Schema:
    """Return the schema of pseudo-labels, one row per image. `row` counts inside the shard. `probs` is float32 [num_classes];
    with `top_k`, float32 [top_k] in falling order, and `top_labels`, int32 [top_k], names their classes."""
    count = num_classes if top_k is None else min(top_k, num_classes)
    fields = [
        ("image_id", pa.string()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("confidence", pa.float32()),
        ("label", pa.int32()),
        ("probs", pa.list_(pa.float32(), count)),
    ]
    return pa.schema(fields if top_k is None else [*fields, ("top_labels", pa.list_(pa.int32(), count))])


def feature_columns(image_id: pa.Array, shard: int, row: np.ndarray, features: np.ndarray) -> pa.Table:
    """One vector an image, as rows to store: row int32 [n] counts inside the shard, features float32 [n, d]."""
    count, width = features.shape
    flat = pa.array(np.ascontiguousarray(features, np.float32).reshape(-1))
    data = {
        "image_id": image_id,
        "shard": pa.array(np.full(count, shard, np.int32)),
        "row": pa.array(row.astype(np.int32)),
        "features": pa.FixedSizeListArray.from_arrays(flat, width),
    }
    return pa.table(data)


SCENE_LABELS = pa.schema(
    [
        ("image_id", pa.string()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("width", pa.int32()),  # of the image as it is stored
        ("height", pa.int32()),
        ("confidence", pa.float32()),
        ("label", pa.int32()),
    ]
)
"""What the labels of an image with boxes or a mask begin with. Boxes: `confidence` is the highest score and `label` its class
(0 and NO_LABEL without a box). Masks: the mean probability of the pixels, and the most frequent class."""

BOX_LABELS = pa.schema(
    [
        *SCENE_LABELS,
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),  # corners x1 y1 x2 y2, pixels of the image as it is stored
        ("labels", pa.list_(pa.int32())),
        ("scores", pa.list_(pa.float32())),  # 1 where a person drew the box
    ]
)
"""One row an image: what a detector said, after non-maximum suppression, in falling order of the scores."""

BOX_TARGETS = pa.schema(
    [
        *BOX_LABELS,
        ("ignore", pa.list_(pa.bool_())),  # crowds (COCO) and difficult objects (VOC): neither found nor missed in a metric
        ("crowd", pa.list_(pa.bool_())),  # which of them are crowds: whatever lies inside one does not count
        ("areas", pa.list_(pa.float32())),  # of the objects, in pixels: what COCO's sizes go by
    ]
)
"""One row an image: the boxes that people drew."""

MASK_LABELS = pa.schema(
    [
        *SCENE_LABELS,
        ("mask", pa.binary()),  # PNG, uint8: classes; 255 where there is none
        ("certainty", pa.binary()),  # PNG, uint8: 255 times the probability of the class; empty where a person drew the mask
    ]
)
"""One row an image: what a segmenter said, or what a person drew, at the size of the image as it is stored."""
