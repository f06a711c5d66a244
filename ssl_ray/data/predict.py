"""Labels from a model, streamed by Ray Data through an actor pool into sharded Parquet.

Work is cut into row ranges of shards. A range's label file is named after it and appears whole or not at all; so a restart
lists the files, subtracts them from the shards, and reads only what is missing. A task that Ray repeats writes the same
file again.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from ssl_ray.artifacts import Checkpoint, Corpus, LabelFile, Shard, list_label_files
from ssl_ray.cluster import check_resources, cores_for, ensure_ray, own_error, quiet_data
from ssl_ray.errors import SourceError
from ssl_ray.scale import Scale
from ssl_ray.schema import QUARANTINE
from ssl_ray.storage import Folder, absolute


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


class Predict:
    """An actor with the un-noised model: EMA weights, eval mode, no augmentation. Decodes one batch ahead.

    Takes ranges (`shard`, `start`, `stop`), writes their label and quarantine files, and gives back what it did.
    """

    def __init__(self, images: str, model: str, out: str, batch: int, threads: int, device: str):
        import torch

        from ssl_ray.models import load_model

        torch.set_num_threads(threads)
        self._corpus = Corpus(images)
        self._shards = {shard.shard: shard for shard in self._corpus.all_shards}
        self._model = load_model(model).to(device)
        self._out, self._batch = Folder(out), batch
        self._pool = ThreadPoolExecutor(threads + 1, thread_name_prefix="decode")
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")

    def __call__(self, ranges: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        done = [
            self._label(LabelFile(int(shard), int(start), int(stop)))
            for shard, start, stop in zip(ranges["shard"], ranges["start"], ranges["stop"], strict=True)
        ]
        return {key: np.asarray([item[key] for item in done]) for key in done[0]}

    def _label(self, file: LabelFile) -> dict[str, Any]:
        from ssl_ray.data.shards import decode_all, read_encoded
        from ssl_ray.tasks.classification import columns

        begin = time.perf_counter()
        shard = self._shards[file.shard]
        ids = self._corpus.rows(file.shard, ["image_id"])["image_id"].combine_chunks()
        chunks = [np.arange(i, min(i + self._batch, file.stop)) for i in range(file.start, file.stop, self._batch)]
        tables, bad = [], []
        # The range is read once; batches of it are decoded one ahead of the model.
        data = read_encoded(self._corpus, shard, np.arange(file.start, file.stop), self._pool)

        def decoded(rows: np.ndarray) -> tuple[np.ndarray, list[tuple[int, str]]]:
            return decode_all(data[rows[0] - file.start : rows[-1] + 1 - file.start], self._model.preprocess, self._pool)

        coming = self._ahead.submit(decoded, chunks[0])
        for number, rows in enumerate(chunks):
            pixels, failures = coming.result()
            if number + 1 < len(chunks):
                coming = self._ahead.submit(decoded, chunks[number + 1])
            broken = {position for position, _ in failures}
            good = np.array([i for i in range(len(rows)) if i not in broken], np.int64)
            bad += [(ids[int(rows[i])].as_py(), file.shard, int(rows[i]), reason) for i, reason in failures]
            if len(good):
                probs = self._model.probs(pixels[good])
                tables.append(columns(ids.take(pa.array(rows[good])), file.shard, rows[good], probs))
        empty = columns(
            pa.array([], pa.string()), file.shard, np.empty(0, np.int32), np.empty((0, len(self._corpus.classes)), np.float32)
        )
        quarantine = Folder(f"{self._out.path}/quarantine")
        if bad:  # before the label file, which says that the range is done
            names = QUARANTINE.names
            quarantine.write_table(
                file.name, pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in bad], QUARANTINE)
            )
        Folder(f"{self._out.path}/labels").write_table(file.name, pa.concat_tables([empty, *tables]))
        return {"rows": file.stop - file.start, "quarantined": len(bad), "seconds": time.perf_counter() - begin}


def predict(
    out: Folder, scale: Scale, *, images: Corpus, model: Checkpoint, splits: Sequence[str], budget: float, advice: str = ""
) -> dict[str, Any]:
    """Label all images of some splits into `out/labels` and `out/quarantine`, or what is missing of them.

    Args:
        budget: share of images that may be quarantined.
        advice: how to allow more, for the message.

    Returns:
        Counts and timings for the record.

    Raises:
        SourceError: more images than the budget allows cannot be decoded; the first reasons are named.
    """
    shards = [shard for split in splits for shard in images.shards(split)]
    labels = out / "labels"
    finished = list_label_files(labels)
    todo = plan(shards, finished, scale.label_rows_per_file)
    total = sum(shard.num_rows for shard in shards)
    begin, worked, start_s = time.perf_counter(), 0.0, 0.0
    if todo:
        stream = _in_this_process if scale.label_actors_max == 0 else _stream
        ready, wanted = 0, sum(file.stop - file.start for file in todo)
        for row in stream(out, scale, images, model, todo):
            if not worked:
                start_s = max(0.0, time.perf_counter() - begin - float(row["seconds"]))
            worked += float(row["seconds"])
            ready += int(row["rows"])
            if not sys.stderr.isatty():  # Ray draws its own bar in a terminal
                print(f"labeled {ready:,}/{wanted:,}  {ready / (time.perf_counter() - begin):,.0f} images/s", flush=True)
    elapsed = time.perf_counter() - begin
    bad = out / "quarantine"
    # A kill between a quarantine file and its label file leaves the first alone; its range is done again.
    whole = {file.name for file in list_label_files(labels)}
    for name in bad.names(".parquet"):
        if name not in whole:
            bad.remove(name)
    reasons = [row for name in bad.names(".parquet") for row in bad.read_table(name).to_pylist()]
    if len(reasons) > budget * total:
        first = "; ".join(f"{row['image_id']} {row['reason']}" for row in reasons[:3])
        raise SourceError(
            f"{len(reasons)} of {total} images cannot be decoded, more than the budget of {budget:.1%} ({first}); take them "
            f"out{advice}; what has been labeled is kept"
        )
    rows = sum(file.stop - file.start for file in todo)
    return {
        "images": total - len(reasons),
        "quarantined": len(reasons),
        "files": len(finished) + len(todo),
        "labeled_now": rows,
        "work_s": round(worked, 3),
        "start_s": round(start_s, 3),
        "images_per_s": round(rows / elapsed, 1) if rows else 0.0,
    }


def _in_this_process(
    out: Folder, scale: Scale, images: Corpus, model: Checkpoint, todo: list[LabelFile]
) -> Iterable[dict[str, Any]]:
    """The same function on the same ranges, without Ray."""
    threads, device = cores_for(1, scale.label_threads), "cuda" if scale.label_gpus else "cpu"
    function = Predict(images.path, model.path, out.path, scale.label_batch, threads, device)
    for file in todo:
        done = function({"shard": np.array([file.shard]), "start": np.array([file.start]), "stop": np.array([file.stop])})
        yield {key: value[0] for key, value in done.items()}


def _stream(out: Folder, scale: Scale, images: Corpus, model: Checkpoint, todo: list[LabelFile]) -> Iterable[dict[str, Any]]:
    ensure_ray(scale)
    if not scale.autoscaling:
        check_resources("scale.label_actors_min", scale.label_actors_min, scale.label_cpus, scale.label_gpus)
    import ray.data

    context = quiet_data()
    context.execution_no_progress_timeout_s = scale.stall_timeout_s
    actors = min(scale.label_actors_max, len(todo))
    ds = ray.data.from_items(
        [{"shard": file.shard, "start": file.start, "stop": file.stop} for file in todo], override_num_blocks=len(todo)
    )
    device = "cuda" if scale.label_gpus else "cpu"
    arguments: dict[str, Any] = {"max_restarts": 3, "max_task_retries": 3}  # Ray's default is without end
    with warnings.catch_warnings():
        # Ray announces the end of free-form arguments before it offers these two as named ones.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        ds = ds.map_batches(
            Predict,
            fn_constructor_kwargs={
                "images": absolute(images.path),
                "model": absolute(model.path),
                "out": absolute(out.path),
                "batch": scale.label_batch,
                "threads": cores_for(actors, scale.label_threads),
                "device": device,
            },
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=min(scale.label_actors_min, actors), max_size=actors, max_tasks_in_flight_per_actor=2
            ),
            num_cpus=scale.label_cpus,
            num_gpus=scale.label_gpus or None,
            **arguments,
        )
    try:
        yield from ds.iter_rows()
    except Exception as error:
        if (ours := own_error(error)) is error:
            raise
        raise ours from error
