"""Files of labels, features and predictions. Each holds the rows of one range of a shard, and its name gives the range."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssl_ray.damage import out_of_range
from ssl_ray.storage import Folder


@dataclass(frozen=True)
class LabelFile:
    """Rows [start, stop) of a shard. The range is in the file name, so that a restart can plan from a listing alone."""

    shard: int
    start: int
    stop: int

    PATTERN: ClassVar[re.Pattern[str]] = re.compile(r"^(\d{6,})-(\d{8,})-(\d{8,})\.parquet$")

    @property
    def name(self) -> str:
        return f"{self.shard:06d}-{self.start:08d}-{self.stop:08d}.parquet"

    @classmethod
    def parse(cls, name: str) -> LabelFile | None:
        match = cls.PATTERN.match(name)
        return cls(*(int(part) for part in match.groups())) if match else None

    def misfit(self, footer: pq.FileMetaData) -> str:
        """Say why a file with this footer cannot hold rows of this range; return "" if it can.

        The smallest and largest row and shard in the footer show whether another file was copied over this one.
        """
        if footer.num_rows > self.stop - self.start:
            return f"it holds {footer.num_rows} rows, and its name says at most {self.stop - self.start}"
        return out_of_range(footer, {"shard": (self.shard, self.shard), "row": (self.start, self.stop - 1)})

    def read(self, folder: Folder, columns: Sequence[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
        """Read the rows of this range.

        Raises:
            DamagedError: the file is missing, cannot be read, or holds other rows or columns.
        """
        table = folder.read_table(self.name, columns, schema, self.misfit)
        if "confidence" in table.column_names and not pc.all(pc.is_finite(table["confidence"]), min_count=0).as_py():
            raise folder.damaged(self.name, "it holds a confidence that is not a number")
        return table


def list_label_files(folder: Folder) -> list[LabelFile]:
    """List the label files in shard and row order; other files are ignored."""
    found = (LabelFile.parse(name) for name in folder.names(".parquet"))
    return sorted((file for file in found if file is not None), key=lambda file: (file.shard, file.start))
