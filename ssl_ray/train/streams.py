"""The streams of a training run, as its settings ask for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ssl_ray.artifacts import Corpus, PseudoLabels, Selection
from ssl_ray.data.loader import Stream, StreamConfig, Streams, image_entries, labeled_entries, pseudo_entries
from ssl_ray.data.scenes import SceneStream, TargetStore, pseudo_images
from ssl_ray.data.store import Entries
from ssl_ray.errors import SourceError
from ssl_ray.randomness import generator
from ssl_ray.scale import Scale
from ssl_ray.settings.pretraining import PRETRAINING, PretrainConfig
from ssl_ray.settings.training import DetectionConfig, LabeledConfig, LoopConfig, SegmentationConfig, TrainConfig


def make_streams(
    config: LoopConfig,
    images: Corpus,
    labels: PseudoLabels | None,
    selection: Selection | None,
    *,
    rank: int,
    workers: int,
    scale: Scale,
    other: Corpus | None = None,
) -> Sequence[Streams]:
    """This worker's streams: labeled and pseudo-labeled images, labeled first; or all images without labels.

    Args:
        other: the images beside, for joint training.
    """
    if isinstance(config, DetectionConfig | SegmentationConfig):
        scenes = _of_scenes(config, images, labels, selection, rank=rank, workers=workers, scale=scale)
        if config.beside is None:
            return scenes
        assert other is not None, "joint training needs other images"
        beside = StreamConfig("beside", labeled_entries(other), ("train",), config.beside.batch)
        more = Stream(
            beside,
            other,
            config.beside.preprocess,
            seed=config.seed,
            lanes=config.lanes,
            rank=rank,
            workers=workers,
            cache_mb=scale.cache_mb // 2,
            pool=ThreadPoolExecutor(scale.decode_threads, thread_name_prefix="decode"),
        )
        return [*scenes, more]
    if isinstance(config, LabeledConfig):
        specs = _with_labels(config, images, labels, selection)
    else:
        everything = image_entries(images, PRETRAINING)
        if isinstance(config, PretrainConfig) and config.share < 1:
            everything = drawn_share(everything, config.share, config.share_seed)
        specs = [StreamConfig("images", everything, PRETRAINING, config.batch, crops=config.decoded_crops(), raw=True)]
    if not specs[0].entries:
        raise SourceError("there is no image to train on")
    pool = ThreadPoolExecutor(scale.decode_threads, thread_name_prefix="decode")
    return [
        Stream(
            spec,
            images,
            config.preprocess,
            seed=config.seed,
            lanes=config.lanes,
            rank=rank,
            workers=workers,
            cache_mb=scale.cache_mb // len(specs),
            pool=pool,
        )
        for spec in specs
    ]


def drawn_share(entries: Entries, share: float, seed: int) -> Entries:
    """A share of all images; of one seed, the smaller is part of the larger. At least one image."""
    count = max(1, round(share * len(entries.shard)))
    kept = np.sort(generator(seed, "share of images").permutation(len(entries.shard))[:count])
    return Entries(entries.shard[kept], entries.row[kept], entries.label[kept])


def _of_scenes(
    config: DetectionConfig | SegmentationConfig,
    images: Corpus,
    labels: PseudoLabels | None,
    selection: Selection | None,
    *,
    rank: int,
    workers: int,
    scale: Scale,
) -> list[SceneStream]:
    """Streams of images with boxes or masks."""
    labeled, pseudo = config.per_step()
    keep = 4 * config.lanes + 8  # shards whose targets are held: those that the lanes shuffle into each other, and some
    specs: list[tuple[StreamConfig, TargetStore]] = []
    if labeled:
        entries = labeled_entries(images, config.subset)
        specs.append(
            (StreamConfig("labeled", entries, ("train",), labeled), TargetStore(images.targets, config.task, None, keep))
        )
    if pseudo:
        assert labels is not None, "a student needs pseudo-labels"
        assert selection is not None, "a student needs a selection"
        split = labels.record.config["split"]
        store = TargetStore(labels.labels, config.task, selection.thresholds, keep)
        specs.append((StreamConfig("pseudo", pseudo_images(labels, selection), (split,), pseudo), store))
    pool = ThreadPoolExecutor(scale.decode_threads, thread_name_prefix="decode")
    return [
        SceneStream(
            spec,
            images,
            targets,
            config.augment,
            config.preprocess,
            seed=config.seed,
            lanes=config.lanes,
            rank=rank,
            workers=workers,
            cache_mb=scale.cache_mb // len(specs),
            pool=pool,
        )
        for spec, targets in specs
    ]


def _with_labels(
    config: LabeledConfig, images: Corpus, labels: PseudoLabels | None, selection: Selection | None
) -> list[StreamConfig]:
    labeled, pseudo = config.per_step()
    specs, crops = [], config.decoded_crops()
    if labeled:
        specs.append(StreamConfig("labeled", labeled_entries(images, config.subset), ("train",), labeled, crops=crops))
    if not pseudo:
        return specs
    assert isinstance(config, TrainConfig)
    # Without noise, unlabeled images are seen as in labelling.
    drawn = crops if config.pseudo.noise else None
    if config.pseudo.teacher == "live":
        everything = image_entries(images, PRETRAINING)
        return [*specs, StreamConfig("pseudo", everything, PRETRAINING, pseudo, crops=drawn, targets=False, raw=True)]
    assert labels is not None, "a student needs pseudo-labels"
    assert selection is not None, "a student needs a selection"
    soft = labels if config.pseudo.targets == "soft" else None
    split = labels.record.config["split"]
    entries = pseudo_entries(labels, selection)
    temperature = config.pseudo.temperature
    specs.append(
        StreamConfig("pseudo", entries, (split,), pseudo, soft, temperature, crops=drawn, copied=selection.copied_images)
    )
    return specs
