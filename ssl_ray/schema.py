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
    """One row an image: what the labeler said. `row` counts inside the shard. `probs` is float16 [num_classes]; with
    `top_k`, float16 [top_k] in falling order, and `top_labels`, int32 [top_k], says of which classes."""
    count = num_classes if top_k is None else min(top_k, num_classes)
    fields = [
        ("image_id", pa.string()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("confidence", pa.float32()),
        ("label", pa.int32()),
        ("probs", pa.list_(pa.float16(), count)),
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
