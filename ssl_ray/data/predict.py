"""Labels from a model, streamed by Ray Data through an actor pool into sharded Parquet.

Work is cut into row ranges of shards. A range's label file is named after it and appears whole or not at all; so a restart
lists the files, subtracts them from the shards, and reads only what is missing. A task that Ray repeats finds its file, or
writes the same one again.
"""

from __future__ import annotations

import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np

from ssl_ray.artifacts import Checkpoint, Corpus, LabelFile, list_label_files
from ssl_ray.cluster import check_resources, cores_for, ensure_ray, own_error, quiet_data
from ssl_ray.data.labeler import (
    LEAKED,
    Clock,
    Decoded,
    Labeler,
    LabelerSettings,
    Precision,
    decoded_batches,
    from_block,
    to_block,
)
from ssl_ray.data.ranges import overlapping, plan
from ssl_ray.errors import SourceError, SslRayError
from ssl_ray.scale import Scale
from ssl_ray.storage import Folder, absolute
from ssl_ray.views.decode import Preprocess

SPLIT_BLOCK = 48 * 2**20
"""Bytes of decoded pixels that travel through the object store at a time; well under what Ray would cut."""

MAX_BLOCKS = 4000
"""Blocks of ranges that Ray Data plans at once: its driver holds something for each."""


ATTEMPTS = 4
"""Plans that are made for one call: the last one finds nothing left to do."""


class Predict:
    """The actor of the fused placement: ranges in, what was done out."""

    def __init__(self, settings: dict[str, Any]):
        self._labeler = Labeler(LabelerSettings(**settings))

    def __call__(self, ranges: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        files = zip(ranges["shard"], ranges["start"], ranges["stop"], strict=True)
        return _columns([self._labeler.fused(LabelFile(int(a), int(b), int(c))) for a, b, c in files])


class PredictDecoded(Predict):
    """The actor of the split placement: decoded pixels in."""

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return _columns([self._labeler.split(shard, decoded) for shard, decoded in from_block(block)])


def decode_ranges(
    ranges: dict[str, np.ndarray], settings: dict[str, Any], preprocess: dict[str, Any], threads: int
) -> Iterator[dict[str, np.ndarray]]:
    """The task of the split placement: read and decode one range; nothing, if its labels are there already."""
    chosen = LabelerSettings(**settings)
    labels = Folder(chosen.out) / "labels"
    with ThreadPoolExecutor(threads) as pool:
        for shard, start, stop in zip(ranges["shard"], ranges["start"], ranges["stop"], strict=True):
            file = LabelFile(int(shard), int(start), int(stop))
            if labels.exists(file.name):
                continue
            parts = list(decoded_batches(chosen, file, 256, Preprocess.model_validate(preprocess), pool, Clock()))
            reasons: dict[int, str] = {}
            for part in parts:
                reasons |= {int(part.rows[i]) - file.start: reason for i, reason in part.reasons.items()}
            rows = np.concatenate([part.rows for part in parts])
            yield to_block(file.shard, Decoded(rows, np.concatenate([part.pixels for part in parts]), reasons))


def _columns(done: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {key: np.asarray([item[key] for item in done]) for key in done[0]} if done else {"rows": np.empty(0, np.int64)}


def predict(
    out: Folder,
    scale: Scale,
    *,
    images: Corpus,
    model: Checkpoint,
    splits: Sequence[str],
    budget: float,
    advice: str = "",
    precision: Precision = "auto",
    top_k: int | None = None,
    leaks: bool = False,
) -> dict[str, Any]:
    """Label all images of some splits into `out/labels` and `out/quarantine`, or what is missing of them.

    Args:
        budget: share of images that may be unreadable.
        advice: how to allow more, for the message.
        top_k: keep only so many probabilities an image; None: all.
        leaks: leave out images that have the same bytes as a test image.

    Returns:
        Counts and timings for the record.

    Raises:
        SourceError: more images than the budget allows cannot be decoded; the first reasons are named.
    """
    shards = [shard for split in splits for shard in images.shards(split)]
    total = sum(shard.num_rows for shard in shards)
    size = Preprocess.model_validate(model.model["preprocess"]).size
    rows_per_file = scale.label_rows_per_file
    if scale.decode == "split":
        rows_per_file = max(1, min(rows_per_file, SPLIT_BLOCK // (3 * size * size)))
    settings = LabelerSettings(
        images=absolute(images.path),
        model=absolute(model.path),
        out=absolute(out.path),
        batch=scale.label_batch,
        threads=cores_for(max(1, scale.label_actors_max), scale.label_threads),
        device="cuda" if scale.label_gpus else "cpu",
        precision=precision,
        top_k=top_k,
        leaks=leaks,
    )
    before = _quarantined(out)
    begin, spent, start_s, labeled = time.perf_counter(), Counter[str](), 0.0, 0
    for attempt in range(ATTEMPTS):
        todo = plan(shards, _tidied(out), rows_per_file)
        if not todo:
            break
        if attempt == ATTEMPTS - 1:
            raise RuntimeError(
                f"{len(todo)} ranges of {out.path} came back without labels, three times; the first is {todo[0]}"
            )
        stream = _in_this_process(settings, todo) if scale.label_actors_max == 0 else _stream(settings, scale, model, todo)
        ready, wanted = 0, sum(file.stop - file.start for file in todo)
        for row in _until_lost(stream, last=attempt == ATTEMPTS - 2):
            if not labeled:
                start_s = max(0.0, time.perf_counter() - begin - float(row["seconds"]))
            ready, labeled = ready + int(row["rows"]), labeled + int(row["rows"])
            before += int(row["quarantined"])
            spent.update({key: float(value) for key, value in row.items() if key.endswith("_s") or key == "seconds"})
            if before > budget * total:
                break
            if not sys.stderr.isatty():  # Ray draws its own bar in a terminal
                print(f"labeled {ready:,}/{wanted:,}  {ready / (time.perf_counter() - begin):,.0f} images/s", flush=True)
        if before > budget * total:
            break
    elapsed = time.perf_counter() - begin
    return {
        **_checked_budget(out, total, budget, advice),
        "labeled_now": labeled,
        "work_s": round(max(0.0, elapsed - start_s), 3) if labeled else 0.0,
        "start_s": round(start_s, 3),
        "images_per_s": round(labeled / elapsed, 1) if labeled else 0.0,
        "spent": {key: round(value, 3) for key, value in sorted(spent.items())},
    }


def _until_lost(stream: Iterable[dict[str, Any]], last: bool) -> Iterator[dict[str, Any]]:
    """What a stream gives, until it is through or Ray lost what it stands on; the plan of what is missing is then made anew."""
    try:
        yield from stream
    except Exception as error:
        if last or not _may_pass(error):
            raise
        print(f"Ray lost a part of the work ({type(error).__name__}); what is missing is planned again", flush=True)


def _tidied(out: Folder) -> list[LabelFile]:
    """The label files, after what a kill left behind was taken away."""
    labels, bad = out / "labels", out / "quarantine"
    files = list_label_files(labels)
    for file in overlapping(files):
        labels.remove(file.name)
        files.remove(file)
    # A kill between a quarantine file and its label file leaves the first alone; its range is done again.
    whole = {file.name for file in files}
    for name in bad.names(".parquet"):
        if name not in whole:
            bad.remove(name)
    return files


def _quarantined(out: Folder) -> int:
    return sum(row["reason"] != LEAKED for row in quarantine_rows(out / "quarantine"))


def quarantine_rows(folder: Folder) -> list[dict[str, Any]]:
    """All rows of a quarantine, in shard and row order."""
    with ThreadPoolExecutor(16) as pool:
        return [row for table in pool.map(folder.read_table, folder.names(".parquet")) for row in table.to_pylist()]


def _checked_budget(out: Folder, total: int, budget: float, advice: str) -> dict[str, Any]:
    rows = quarantine_rows(out / "quarantine")
    reasons = [row for row in rows if row["reason"] != LEAKED]
    if len(reasons) > budget * total:
        first = "; ".join(f"{row['image_id']} {row['reason']}" for row in reasons[:3])
        raise SourceError(
            f"{len(reasons)} of {total} images cannot be decoded, more than the budget of {budget:.1%} ({first}); take them "
            f"out{advice}; what has been labeled is kept"
        )
    files = list_label_files(out / "labels")
    by_reason = Counter(re.split(r"[:(]", row["reason"])[0].strip() for row in rows)
    return {
        "images": total - len(rows),
        "quarantined": len(reasons),
        "leaked": len(rows) - len(reasons),
        "quarantine_reasons": dict(by_reason.most_common(20)),
        "files": len(files),
    }


def _in_this_process(settings: LabelerSettings, todo: list[LabelFile]) -> Iterable[dict[str, Any]]:
    """The same function on the same ranges, without Ray: two at a time, one decodes while the other has the model."""
    labeler = Labeler(settings)
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(todo), 16):
            yield from pool.map(labeler.fused, todo[start : start + 16])


def _stream(settings: LabelerSettings, scale: Scale, model: Checkpoint, todo: list[LabelFile]) -> Iterable[dict[str, Any]]:
    ensure_ray(scale)
    if not scale.autoscaling:
        check_resources("scale.label_actors_min", scale.label_actors_min, scale.label_cpus, scale.label_gpus)
    import ray.data

    context = quiet_data()
    context.execution_no_progress_timeout_s = scale.stall_timeout_s
    actors = min(scale.label_actors_max, len(todo))
    ranges = [{"shard": file.shard, "start": file.start, "stop": file.stop} for file in todo]
    ds = ray.data.from_items(ranges, override_num_blocks=min(len(todo), MAX_BLOCKS))
    split = scale.decode == "split"
    with warnings.catch_warnings():
        # Ray announces the end of free-form arguments before it offers these two as named ones.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        if split:
            ds = ds.map_batches(
                decode_ranges,
                fn_kwargs={
                    "settings": asdict(settings),
                    "preprocess": model.model["preprocess"],
                    "threads": scale.decode_threads,
                },
                batch_size=1,
                num_cpus=scale.decode_cpus,
                max_retries=10,
            )
        # Ray's default is without end. A lost node is noticed late, and a task is tried many times until then; an actor that
        # dies of what it reads ends after its restarts.
        arguments: dict[str, Any] = {"max_restarts": 3, "max_task_retries": 100}
        ds = ds.map_batches(
            PredictDecoded if split else Predict,
            fn_constructor_kwargs={"settings": asdict(settings)},
            batch_size=None if split else 1,
            compute=ray.data.ActorPoolStrategy(
                min_size=min(scale.label_actors_min, actors),
                max_size=actors,
                # Two calls at a time: one reads and decodes while the other has the model.
                max_tasks_in_flight_per_actor=3,
                max_concurrent_calls_per_actor=2,
                enable_true_multi_threading=True,
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


def _may_pass(error: BaseException) -> bool:
    """Whether Ray lost an actor, a node or an object, and the rest of the work may be planned and tried again."""
    if isinstance(error, SslRayError):
        return False
    import ray.exceptions as lost

    kinds = (lost.RayActorError, lost.NodeDiedError, lost.ObjectLostError, lost.WorkerCrashedError, lost.RaySystemError)
    return isinstance(error, kinds) or isinstance(error.__cause__, kinds)
