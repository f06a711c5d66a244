"""The columns of every artifact. Rows are columns, never objects: any Parquet reader opens them."""

from __future__ import annotations

import pyarrow as pa

NO_LABEL = -1
"""Stands in `label` and `truth` where an image has none."""

SHARDS = pa.schema(
    [
        ("shard", pa.int32()),
        ("split", pa.string()),  # train, val, test or unlabeled: no shard mixes splits
        ("format", pa.string()),  # folder: one file an image; parquet: encoded images in a column
        ("num_rows", pa.int32()),
        ("image_column", pa.string()),  # parquet only
    ]
)
"""One row a shard: what is needed to plan work without opening the manifest."""

MANIFEST = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),  # the image file, or the Parquet file that holds the image
        ("file_row", pa.int64()),  # row inside the Parquet file; -1 for an image file
        ("label", pa.int32()),  # index into the corpus's classes; NO_LABEL where there is none
        ("truth", pa.int32()),  # a label that training never sees (samples only), for measuring pseudo-labels
        ("size", pa.int64()),  # bytes of the file when it was listed, to notice a source that changed
    ]
)
"""One row an image; row group i of the file is shard i."""

QUARANTINE = pa.schema([("image_id", pa.string()), ("shard", pa.int32()), ("row", pa.int32()), ("reason", pa.string())])
"""Images that could not be decoded, and why."""


def classification_labels(num_classes: int) -> pa.Schema:
    """One row an image: what the labeler said. `probs` is float16 [num_classes]; `row` counts inside the shard."""
    return pa.schema(
        [
            ("image_id", pa.string()),
            ("shard", pa.int32()),
            ("row", pa.int32()),
            ("confidence", pa.float32()),
            ("label", pa.int32()),
            ("probs", pa.list_(pa.float16(), num_classes)),
        ]
    )
