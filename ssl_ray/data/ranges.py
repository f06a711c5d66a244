"""Which rows are labeled, and which are still to be: arithmetic on the names of label files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from ssl_ray.artifacts import Shard
from ssl_ray.label_files import LabelFile


def plan(shards: Sequence[Shard], done: Iterable[LabelFile], rows_per_file: int) -> list[LabelFile]:
    """The ranges that are still to be labeled: shards minus what files cover, cut to at most `rows_per_file` rows."""
    covered: dict[int, list[LabelFile]] = defaultdict(list)
    for file in done:
        covered[file.shard].append(file)
    todo = []
    for shard in shards:
        begin = 0
        ends = [(file.start, file.stop) for file in sorted(covered[shard.shard], key=lambda file: file.start)]
        for start, stop in [*ends, (shard.num_rows, shard.num_rows)]:
            while begin < start:
                end = min(begin + rows_per_file, start)
                todo.append(LabelFile(shard.shard, begin, end))
                begin = end
            begin = max(begin, stop)
    return todo


def overlapping(files: Iterable[LabelFile]) -> list[LabelFile]:
    """Files to take away, so that no row stands in two of them.

    Two cuts of the same rows meet when a job is killed, started again with another `label_rows_per_file`, and an actor of the
    first one still writes. What stays is decided by the names alone; gaps that arise are planned again.
    """
    superfluous, shard, end = [], -1, 0
    for file in sorted(files, key=lambda file: (file.shard, file.start, -file.stop)):
        if file.shard != shard:
            shard, end = file.shard, 0
        if file.start < end:
            superfluous.append(file)
        else:
            end = file.stop
    return superfluous
