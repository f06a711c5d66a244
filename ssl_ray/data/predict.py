"""Labels from a model, streamed by Ray Data through an actor pool into sharded Parquet.

Work is cut into row ranges of shards. A range's label file is named after it and appears whole or not at all; so a restart
lists the files, subtracts them from the shards, and reads only what is missing. A task that Ray repeats finds its file, or
writes the same one again.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
from pydantic import ValidationError

from ssl_ray.artifacts import Checkpoint, Corpus
from ssl_ray.cluster import check_resources, cores_for, ensure_ray, plain_errors, quiet_data
from ssl_ray.data.answers import Output
from ssl_ray.data.labeler import (
    Clock,
    Decoded,
    Labeler,
    LabelerSettings,
    Precision,
    decoded_batches,
    from_block,
    to_block,
)
from ssl_ray.data.quarantine import check_budget, forget_unreadable, quarantined, tidied, wrong_ranges
from ssl_ray.data.ranges import plan
from ssl_ray.data.shards import decoding_of
from ssl_ray.errors import SslRayError
from ssl_ray.filesystems import absolute
from ssl_ray.label_files import LabelFile, list_label_files
from ssl_ray.lock import check_held
from ssl_ray.progress import time_left
from ssl_ray.scale import Scale
from ssl_ray.settings.views import Preprocess
from ssl_ray.storage import Folder

SPLIT_BLOCK = 48 * 2**20
"""Bytes of decoded pixels that travel through the object store at a time; well under what Ray would cut."""

MAX_BLOCKS = 4000
"""Blocks of ranges that Ray Data plans at once: its driver holds something for each."""


IDLE_ROUNDS = 3
"""Plans that may bring no label before we give up."""


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
    labels = Folder(chosen.out) / chosen.output
    with ThreadPoolExecutor(threads) as pool:
        for shard, start, stop in zip(ranges["shard"], ranges["start"], ranges["stop"], strict=True):
            file = LabelFile(int(shard), int(start), int(stop))
            if labels.holds_file(file.name):
                continue
            parts = list(decoded_batches(chosen, file, 256, Preprocess.model_validate(preprocess), pool, Clock()))
            reasons: dict[int, str] = {}
            for part in parts:
                reasons |= {int(part.rows[i]) - file.start: reason for i, reason in part.reasons.items()}
            rows = np.concatenate([part.rows for part in parts])
            pixels, sizes = (np.concatenate([getattr(part, name) for part in parts]) for name in ("pixels", "sizes"))
            yield to_block(file.shard, Decoded(rows, pixels, sizes, reasons))


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
    output: Output = "labels",
    layer: dict[str, Any] | None = None,
    scales: tuple[float, ...] = (1.0,),
    as_found: bool = False,
    checked: Sequence[str] = ("row",),
) -> dict[str, Any]:
    """Label all images of some splits into `out/labels` and `out/quarantine`, or what is missing of them.

    Args:
        budget: share of images that may be unreadable.
        advice: how to allow more, for the message.
        top_k: keep only so many probabilities an image; None: all.
        leaks: leave out images that have the same bytes as a test image.
        output: "features" writes what the backbone gives into `out/features` instead.
        scales: of boxes and masks: sizes of an image, as shares of the usual one, whose answers are put together.
        as_found: files that were repaired since they were listed count as they are now, and deleted ones are left out.
        checked: columns of files from an earlier call that are read before the work ends; damaged files are computed again.
        layer: which layer's, as settings of `nets.layers.LayerConfig`; None: the model's own choice.

    Returns:
        Counts and timings for the record.

    Raises:
        SourceError: more images than the budget allows cannot be decoded; the first reasons are named.
    """
    shards = [shard for split in splits for shard in images.shards(split)]
    total = sum(shard.num_rows for shard in shards)
    size = preprocess_of(model).size
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
        output=output,
        layer=layer,
        scales=scales,
        leaks=leaks,
        as_found=as_found,
        computed=images.record.computed,
    )
    tidied(out / output, out / "quarantine")
    if quarantined(out / "quarantine").unreadable > budget * total:
        forget_unreadable(out / output, out / "quarantine")
    _warn_of_ground(images, model)
    begin, spent, start_s, labeled = time.perf_counter(), Counter[str](), 0.0, 0
    idle = 0  # rounds that brought nothing
    earlier = {file.name for file in list_label_files(out / output)}
    while True:
        files = tidied(out / output, out / "quarantine")
        todo = plan(shards, files, rows_per_file)
        if not todo:
            todo = wrong_ranges(out / output, out / "quarantine", files, dict.fromkeys(earlier, checked))
            earlier = set()
            if not todo:
                break
        if idle == IDLE_ROUNDS:
            raise RuntimeError(f"{len(todo)} ranges of {out.path} came back without labels; the first is {todo[0]}")
        bad = quarantined(out / "quarantine").unreadable
        stream = _in_this_process(settings, todo) if scale.label_actors_max == 0 else _stream(settings, scale, model, todo)
        ready, wanted = 0, sum(file.stop - file.start for file in todo)
        for row in _until_lost(stream, last=idle == IDLE_ROUNDS - 1):
            check_held()
            if not labeled:
                start_s = max(0.0, time.perf_counter() - begin - float(row["seconds"]))
            ready, labeled = ready + int(row["rows"]), labeled + int(row["rows"])
            bad += int(row["quarantined"])
            spent.update({key: float(value) for key, value in row.items() if key.endswith("_s") or key == "seconds"})
            if bad > budget * total:
                break
            if not sys.stderr.isatty():  # Ray draws its own bar in a terminal
                took = time.perf_counter() - begin
                rate, left = ready / took, time_left(ready, wanted, took)
                print(f"labeled {ready:,}/{wanted:,}  {rate:,.0f} images/s{left}", flush=True)
        idle = 0 if ready else idle + 1
        check_budget(quarantined(out / "quarantine"), total, budget, advice)
    elapsed = time.perf_counter() - begin
    found = quarantined(out / "quarantine")
    check_budget(found, total, budget, advice)
    return {
        "images": total - found.unreadable - found.leaked - found.taken_out,
        "quarantined": found.unreadable,
        "leaked": found.leaked,
        "taken_out": found.taken_out,
        "quarantine_reasons": dict(found.reasons.most_common(20)),
        "files": len(list_label_files(out / output)),
        "labeled_now": labeled,
        "work_s": round(max(0.0, elapsed - start_s), 3) if labeled else 0.0,
        "start_s": round(start_s, 3),
        "images_per_s": round(labeled / elapsed, 1) if labeled else 0.0,
        "spent": {key: round(value, 3) for key, value in sorted(spent.items())},
    }


def _warn_of_ground(images: Corpus, model: Checkpoint) -> None:
    """Say so if transparent pixels of these images show another ground than those that the model was trained on."""
    learned, ground = model.model.get("decoding", {}).get("background"), decoding_of(images).background
    if learned is not None and tuple(learned) != ground:
        print(
            f"note: {model.path} was trained on pictures over the ground {list(learned)}, and these are laid over "
            f"{list(ground)}; set images.background={list(learned)} if some are transparent",
            flush=True,
        )


def preprocess_of(model: Checkpoint) -> Preprocess:
    """Read how images are prepared for a model.

    Raises:
        DamagedError: its `model.json` says something that no version wrote.
    """
    try:
        return Preprocess.model_validate(model.model["preprocess"])
    except ValidationError as error:
        raise model.folder.damaged("model.json", f"preprocess does not fit ({error})") from None


def _until_lost(stream: Iterable[dict[str, Any]], last: bool) -> Iterator[dict[str, Any]]:
    """What a stream gives, until it is through or Ray lost what it stands on; the plan of what is missing is then made anew."""
    try:
        yield from stream
    except Exception as error:
        if last or not _may_pass(error):
            raise
        print(f"Ray lost a part of the work ({type(error).__name__}); what is missing is planned again", flush=True)


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
    split = scale.decode == "split"
    if split:  # a block for each, so that none grows: what is left comes with the next plan
        todo = todo[:MAX_BLOCKS]
    actors = min(scale.label_actors_max, len(todo))
    ranges = [{"shard": file.shard, "start": file.start, "stop": file.stop} for file in todo]
    ds = ray.data.from_items(ranges, override_num_blocks=min(len(todo), MAX_BLOCKS))
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
            # Decoded: a whole range, or as many rows of several; beside a GPU Ray asks for a number.
            batch_size=max(file.stop - file.start for file in todo) if split else 1,
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
    with plain_errors():
        yield from ds.iter_rows()


def _may_pass(error: BaseException) -> bool:
    """Whether Ray lost an actor, a node or an object, and the rest of the work may be planned and tried again."""
    if isinstance(error, SslRayError):
        return False
    import ray.exceptions as lost

    kinds = (lost.RayActorError, lost.NodeDiedError, lost.ObjectLostError, lost.WorkerCrashedError, lost.RaySystemError)
    return isinstance(error, kinds) or isinstance(error.__cause__, kinds)
