"""What a model says about unlabeled images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from ssl_ray.artifacts import Checkpoint, Corpus, PseudoLabels
from ssl_ray.clustering import agreement, imbalance
from ssl_ray.config import Config
from ssl_ray.data.counts import COLUMNS, NOUNS, counted, task_of
from ssl_ray.data.fold import fold_files, fold_rows
from ssl_ray.data.labeler import Precision
from ssl_ray.data.predict import predict
from ssl_ray.errors import ConfigError, SourceError
from ssl_ray.health import describe
from ssl_ray.label_files import LabelFile, list_label_files
from ssl_ray.scale import Scale
from ssl_ray.schema import NO_LABEL
from ssl_ray.stage import stage
from ssl_ray.storage import Folder

BINS = 100
"""Of the confidence histogram in the record."""


class LabelConfig(Config):
    split: Literal["unlabeled", "train"] = "unlabeled"
    quarantine_budget: Annotated[float, Field(ge=0, le=1)] = 0.01  # share of images that may be unreadable
    top_k: Annotated[int, Field(ge=1)] | None = None  # keep so many probabilities an image; None: all
    precision: Precision = "auto"  # auto: bfloat16 where the hardware computes in it
    # Boxes and masks: sizes of an image, as shares of the usual one, whose answers are put together.
    scales: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (1.0,)


@stage(PseudoLabels, resumable=True)
def label(config: LabelConfig, out: Folder, scale: Scale, *, images: Corpus, model: Checkpoint) -> dict[str, Any]:
    """Soft labels (boxes with scores, masks with certainty) for every image of the split, stored once; thresholds and
    temperature are later decisions.

    The fingerprint of the model is part of this stage's own, so a changed teacher never adds to the old one's rows.

    The model may be a classifier, or what `cluster` made: then classes are clusters, on whatever images.

    Raises:
        SourceError: the corpus and the model know different classes, or too many images are unreadable.
    """
    classes: list[str] = list(model.model["classes"])
    if not classes:
        raise SourceError(f"{model.path} is a pretrained encoder, which knows no classes; fine-tune it, and label with that")
    clusters, task = "clusters" in model.model, task_of(model)
    if task != "classification" and config.top_k is not None:
        raise ConfigError(f"labeler.top_k belongs to classes, and this model says {NOUNS[task]}; leave it out")
    if task == "classification" and config.scales != (1.0,):
        raise ConfigError("labeler.scales belongs to boxes and masks; a classifier has labeler.scales=[1.0]")
    if images.classes and images.classes != classes and not clusters:
        raise SourceError(
            f"the images have {len(images.classes)} classes ({', '.join(images.classes[:5])}, ...) and the model has "
            f"{len(classes)} ({', '.join(classes[:5])}, ...); label with a model that was trained on these classes"
        )
    advice = ", or allow more with --set labeler.quarantine_budget=0.05"
    result = predict(
        out,
        scale,
        images=images,
        model=model,
        splits=[config.split],
        budget=config.quarantine_budget,
        advice=advice,
        precision=config.precision,
        top_k=config.top_k,
        scales=config.scales,
        leaks=config.split == "unlabeled",
        checked=COLUMNS[task],
    )

    def count(table: pa.Table) -> tuple[np.ndarray, float]:
        confidence = table["confidence"].to_numpy()
        return counted(task, table, len(classes), BINS), float(confidence.sum(dtype=np.float64))

    counts, total = fold_rows(
        out / "labels",
        list_label_files(out / "labels"),
        list(dict.fromkeys(["confidence", *COLUMNS[task]])),
        count,
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
        (np.zeros((len(classes), BINS + 1), np.int64), 0.0),
        result["images"],
    )
    mean, per_class = total / max(1, result["images"]), counts.sum(axis=1)
    ground = 1 if task == "segmentation" and len(classes) > 1 else 0  # which most pixels may well be
    said = "" if task == "classification" else f" with {int(counts.sum()):,} {NOUNS[task]}"
    said += {"detection": ", the surest of each image averaged:"}.get(task, ",")
    aside = f", {result['quarantined']:,} in quarantine" if result["quarantined"] else ""
    aside += f", {result['leaked']:,} that are test images left out" if result["leaked"] else ""
    return {
        "summary": (
            f"{result['images']:,} images labeled{said} {'' if task == 'detection' else 'mean '}confidence {mean:.3f}{aside}, "
            f"{result['images_per_s']:,.0f} images/s"
        ),
        "task": task,
        "classes": classes,
        "mean_confidence": mean,
        "per_class": per_class.tolist(),
        "confidence_histogram": counts.sum(axis=0).tolist(),
        "health": describe(
            classes[ground:],
            per_class[ground:].tolist(),
            mean,
            None if clusters else images.results.get("per_class"),
            NOUNS[task],
        ),
        **(met_by_clusters(out, images, per_class) if clusters else {}),
        **result,
    }


def met_by_clusters(out: Folder, images: Corpus, sizes: np.ndarray) -> dict[str, Any]:
    """How even the clusters are on these images, and how well they agree with classes where those are known (which labelling
    never sees): normalised mutual information and purity."""
    labels, k, num_classes = out / "labels", len(sizes), len(images.classes)
    found: dict[str, Any] = {"imbalance": imbalance(sizes), "empty": int((sizes == 0).sum())}
    if images.label_sets is not None or not num_classes:
        return found

    def pairs(file: LabelFile, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        known = images.rows(file.shard, ["label", "truth"])
        row, cluster = table["row"].to_numpy(), table["label"].to_numpy()
        label, truth = known["label"].to_numpy()[row], known["truth"].to_numpy()[row]
        label = np.where(label == NO_LABEL, truth, label)
        here = label != NO_LABEL
        return np.unique(label[here].astype(np.int64) * k + cluster[here], return_counts=True)

    def add(table: np.ndarray, part: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        table[part[0]] += part[1]
        return table

    files, zero = list_label_files(labels), np.zeros(num_classes * k, np.int64)
    table = fold_files(labels, files, ["row", "label"], pairs, add, zero).reshape(num_classes, k)
    return found | agreement(table) | {"known": int(table.sum())}
