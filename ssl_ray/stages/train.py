"""A model from labels, or from labels and pseudo-labels."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa

from ssl_ray.artifacts import Checkpoint, Corpus, PseudoLabels, Selection
from ssl_ray.data.loader import labeled_entries
from ssl_ray.data.predict import preprocess_of
from ssl_ray.errors import ConfigError
from ssl_ray.scale import Scale
from ssl_ray.settings.nets import NetConfig
from ssl_ray.settings.training import DetectionConfig, SegmentationConfig, TrainConfig
from ssl_ray.stage import stage
from ssl_ray.storage import Folder
from ssl_ray.subset import SubsetConfig
from ssl_ray.train.fit import fit

SHAPE = ("name", "width", "blocks", "stem_stride", "norm", "multiplier", "selective_kernels", "small_image")
"""The settings of a net that decide which weights fit it. (AlexNet's conv1 keeps its weights at another stride.)"""


@stage(Checkpoint, resumable=True)
def train(
    config: TrainConfig | DetectionConfig | SegmentationConfig,
    out: Folder,
    scale: Scale,
    *,
    images: Corpus,
    labels: PseudoLabels | None = None,
    selection: Selection | None = None,
    start: Checkpoint | None = None,
    teacher: Checkpoint | None = None,
    other: Corpus | None = None,
) -> dict[str, Any]:
    """Train a classifier, detector or segmenter on Ray Train; killed at any moment, it goes on from its last checkpoint.

    Args:
        labels, selection: pseudo-labels and which of them to use, for `mix` "joint" and "pseudo".
        start: weights to begin with (warm start, fine-tuning); the net must be the same. Of a pretrained encoder the
            backbone is taken, and as many layers of its head as `net.projection` says.
        teacher: labels while the student learns, for `pseudo.teacher=live`.
        other: images with classes, for joint training (`beside`).

    Raises:
        ConfigError: `start` is a checkpoint of another net.
    """
    from ssl_ray.nets.library import view_line, warn_of_view

    if start is not None:
        check_same_net(config.net, start)
    task = "classification" if isinstance(config, TrainConfig) else config.task
    if images.task != task:
        raise ConfigError(f"this net is for {task}, and the images for {images.task}; set images.task={task}")
    if (other is not None) != (isinstance(config, DetectionConfig | SegmentationConfig) and config.beside is not None):
        raise ConfigError("joint training takes the settings `beside` and other images with classes; give both, or none")
    live = isinstance(config, TrainConfig) and config.pseudo.teacher == "live" and config.mix != "labeled"
    if live != (teacher is not None):
        raise ConfigError(
            "pseudo.teacher=live needs a teacher that labels while the student learns, which this job does not give; set "
            "pseudo.teacher=stored"
            if live
            else "a live teacher is given, and pseudo.teacher=stored does not ask it"
        )
    if teacher is not None and isinstance(config, TrainConfig):
        check_teacher(config, images, teacher)
    if labels is not None and config.mix == "joint" and list(labels.results["classes"]) != images.classes:
        raise ConfigError(
            f"the pseudo-labels know {len(labels.results['classes'])} classes and the labeled images other ones "
            f"({len(images.classes)}), and one classifier cannot learn both; train on the pseudo-labels alone "
            f"(mix=pseudo), then fine-tune"
        )
    used = len(labeled_entries(images, config.subset)) if config.per_step()[0] else 0
    if start is None and config.net.begins_elsewhere:
        warn_of_view(config.net.name, config.preprocess)
    result = fit(
        "self-training" if isinstance(config, TrainConfig) else config.task,
        config,
        out,
        scale,
        images=images,
        labels=labels,
        selection=selection,
        start=start,
        teacher=teacher,
        other=other,
    )
    # Not before: a file would make a stage that refused its scale look like one that had begun.
    digest = write_subset(out, images, config.subset) if used and config.subset is not None else None
    last = result["last"]
    return {
        "labels": used,
        "labels_digest": digest,
        "summary": (
            f"{result['steps']} steps, {result['parameters']:,} parameters, loss {last.get('loss', float('nan')):.3f}, "
            f"{result['images_per_s']:,.0f} images/s, waiting for data {last.get('data_wait', 0.0):.0%}"
            + (f"; {view_line(config.preprocess)}" if config.net.begins_elsewhere else "")
        ),
        **result,
    }


def check_teacher(config: TrainConfig, images: Corpus, teacher: Checkpoint) -> None:
    """Raises ConfigError if a live teacher knows other classes, or sees images of another size, than its student."""
    classes, size = list(teacher.model["classes"]), preprocess_of(teacher).size
    if classes != images.classes:
        raise ConfigError(f"the teacher {teacher.path} knows other classes than the images have; fine-tune it on these classes")
    if size != config.preprocess.size:
        raise ConfigError(
            f"a live teacher and its student share views, and the teacher sees {size} pixels, the student "
            f"{config.preprocess.size}; set the same preprocess.size, or pseudo.teacher=stored"
        )


def write_subset(out: Folder, images: Corpus, subset: SubsetConfig) -> str:
    """Which labels are used, by name: `labels.parquet`; returns a digest of the names, for the record.

    Raises:
        SourceError: they cannot be drawn.
    """
    chosen = labeled_entries(images, subset)
    names = {shard.shard: images.rows(shard.shard, ["image_id"])["image_id"] for shard in images.shards("train")}
    ids = [names[int(shard)][int(row)].as_py() for shard, row in zip(chosen.shard, chosen.row, strict=True)]
    out.write_table("labels.parquet", pa.table({"image_id": ids, "label": chosen.label}))
    return hashlib.blake2b("\n".join(ids).encode(), digest_size=8).hexdigest()


def same_architecture(one: str, other: str) -> bool:
    """Whether two names are of one net; a tag of timm names weights, which a checkpoint brings itself."""
    return one.partition(".")[0] == other.partition(".")[0]


def check_same_net(net: NetConfig, start: Checkpoint) -> None:
    """Raises ConfigError if a checkpoint to begin with was made with another net."""
    old, new = NetConfig.model_validate(start.model["net"]).model_dump(mode="json"), net.model_dump(mode="json")
    changed = [
        f"net.{key}: {old[key]} -> {new[key]}"
        for key in SHAPE
        if old[key] != new[key] and (key, new["name"]) != ("stem_stride", "alexnet")
        if key != "name" or not same_architecture(old["name"], new["name"])
    ]
    if changed:
        raise ConfigError(
            f"the checkpoint to begin with, {start.path}, has another net ({'; '.join(changed)}); set the same one, or "
            "begin from scratch"
        )
