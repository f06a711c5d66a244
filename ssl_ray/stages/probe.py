"""What a representation is worth, without training it further: linear probes and nearest neighbours on stored features."""

from __future__ import annotations

import statistics
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from ssl_ray.artifacts import Corpus, Features, Scores
from ssl_ray.config import Config
from ssl_ray.errors import SourceError
from ssl_ray.probes.knn import knn_predict
from ssl_ray.probes.metrics import score
from ssl_ray.randomness import generator
from ssl_ray.scale import Scale
from ssl_ray.settings.training import LinearConfig
from ssl_ray.stage import stage
from ssl_ray.storage import Folder
from ssl_ray.subset import SubsetConfig, draw_subset, num_spare, proportional

Labeled = tuple[np.ndarray, np.ndarray]
"""Features float32 [n, d], and labels int64 [n], or 0/1 [n, C] where an image may have several."""


class KnnConfig(Config):
    k: Annotated[int, Field(ge=1)] = 200
    temperature: Annotated[float, Field(gt=0)] = 0.1


class ProbeConfig(Config):
    linear: LinearConfig | None = LinearConfig()
    knn: KnnConfig | None = KnnConfig()
    counts: tuple[Annotated[int, Field(ge=1)], ...] = ()  # labels, for linear probes on few
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()  # the same as shares of the labeled images
    seeds: Annotated[int, Field(ge=1)] = 3  # draws of labels and of batches
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of the labels, kept to choose by, where there is no validation split
    seed: int = 0

    @model_validator(mode="after")
    def _something(self) -> ProbeConfig:
        if self.linear is None and self.knn is None:
            raise ValueError("all probes are off; leave linear or knn on")
        if self.linear is None and (self.counts or self.shares):
            raise ValueError("counts and shares are of linear probes; leave linear on")
        return self


@stage(Scores)
def probe(config: ProbeConfig, out: Folder, scale: Scale, *, images: Corpus, features: Features) -> dict[str, Any]:
    """Scores on test of every probe: top-1, or macro AUROC where an image may have several labels.

    Rates and steps are chosen on validation images, never on test. A low-shot probe draws its labels by class, at least one
    each, the smaller draw inside the larger one of the same seed; a part of the draw itself is kept to choose by, so that no
    further label is used.

    Raises:
        SourceError: more labels are asked for than there are, or fewer than one a class.
    """
    train, test = _read(images, features, "train"), _read(images, features, "test")
    val = _read(images, features, "val") if images.num_images("val") else None
    classes, metric = len(images.classes), "top1" if images.label_sets is None else "auroc"
    rows: list[dict[str, Any]] = []
    chosen: list[dict[str, Any]] = []

    def note(model: str, seed: int, logits: np.ndarray) -> None:
        value = score(logits, test[1], metric)
        rows.append({"model": model, "seed": seed, "split": "test", "metric": metric, "value": value, "n": len(test[1])})

    if config.knn is not None:
        note("knn", config.seed, knn_predict(*train, test[0], num_classes=classes, **config.knn.model_dump()))
    subsets: list[tuple[str, SubsetConfig | None]] = [("linear", None)] if config.linear is not None else []
    if config.linear is not None:
        subsets += [(f"linear, {count:,} labels", SubsetConfig(count=count)) for count in config.counts]
        subsets += [(f"linear, {share:.3g} of the labels", SubsetConfig(share=share)) for share in config.shares]
    for name, subset in subsets:
        for seed in range(config.seed, config.seed + config.seeds):
            drawn = None if subset is None else subset.model_copy(update={"seed": seed})
            index = draw_subset(_strata(train[1]), drawn)
            part = (train[0][index], train[1][index])
            kept, by = _hold_out(part, config.val_share, seed) if val is None or drawn is not None else (part, val)
            assert config.linear is not None
            from ssl_ray.probes.linear import linear_probe

            found = linear_probe(config.linear, kept, by, num_classes=classes, metric=metric, address=(seed, name))
            note(name, seed, found.predict(test[0]))
            chosen.append({"model": name, "seed": seed, "rate": found.rate, "step": found.step, "val": found.val,
                           "labels": len(index)})  # fmt: skip
    table = summarize(rows)
    text = "; ".join(f"{row['model']} {row['shown']}" for row in table)
    return {"summary": f"on {len(test[1]):,} test images: {text}", "scores": rows, "chosen": chosen, "table": table}


def validated(probed: Scores) -> float:
    """What a model is chosen by: its linear probe on validation images, mean over seeds."""
    return statistics.mean(row["val"] for row in probed.results["chosen"] if row["model"] == "linear")


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds by model, in order of appearance."""
    table = []
    for model in dict.fromkeys(row["model"] for row in rows):
        values = [row["value"] for row in rows if row["model"] == model]
        spread = statistics.stdev(values) if len(values) > 1 else None
        shown = f"{statistics.mean(values):.2%}" + (f" ± {spread * 100:.2f}" if spread is not None else "")
        table.append({"model": model, "mean": statistics.mean(values), "sd": spread, "seeds": len(values), "shown": shown})
    return table


def _read(images: Corpus, features: Features, split: str) -> Labeled:
    shards = images.shards(split)
    if not shards:
        raise SourceError(f"a probe needs labeled {split} images; give --labeled and --test")
    vectors, shard, row = features.table(shards)
    labels = {s.shard: images.rows(s.shard, ["label"])["label"].to_numpy() for s in shards}
    found = np.array([labels[a][b] for a, b in zip(shard.tolist(), row.tolist(), strict=True)], np.int64)
    if images.label_sets is None:
        return vectors, found
    marks = np.zeros((len(images.label_sets), len(images.classes)), np.int64)
    for value, classes in enumerate(images.label_sets):
        marks[value, classes] = 1
    return vectors, marks[found]


def _strata(labels: np.ndarray) -> np.ndarray:
    """What draws are balanced by: the label; nothing, where there are several."""
    return labels if labels.ndim == 1 else np.zeros(len(labels), np.int64)


def _hold_out(part: Labeled, share: float, seed: int) -> tuple[Labeled, Labeled]:
    """Hold out a share of every class to choose settings by. With one label per class, the same labels serve for both."""
    strata = _strata(part[1])
    count = min(round(share * len(strata)), num_spare(strata))
    if count < len(np.unique(strata)):
        return part, part
    held = proportional(strata, count, generator(seed, "held out"))
    rest = np.setdiff1d(np.arange(len(part[1])), held)
    return (part[0][rest], part[1][rest]), (part[0][held], part[1][held])
