"""The streams of a training run, as its settings ask for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ssl_ray.artifacts import Corpus, PseudoLabels, Selection
from ssl_ray.data.loader import Stream, StreamConfig, labeled_entries, pseudo_entries
from ssl_ray.methods.self_training import TrainConfig
from ssl_ray.scale import Scale


def make_streams(
    config: TrainConfig,
    images: Corpus,
    labels: PseudoLabels | None,
    selection: Selection | None,
    *,
    rank: int,
    workers: int,
    scale: Scale,
) -> list[Stream]:
    """This worker's labeled and pseudo-labeled streams; labeled first."""
    labeled, pseudo = config.per_step()
    specs, crops = [], config.view.crop == "resized"
    if labeled:
        specs.append(StreamConfig("labeled", labeled_entries(images), "train", labeled, resized_crops=crops))
    if pseudo:
        assert labels is not None, "a student needs pseudo-labels"
        assert selection is not None, "a student needs a selection"
        soft = labels if config.pseudo.targets == "soft" else None
        split = labels.record.config["split"]
        entries = pseudo_entries(labels, selection)
        # Without noise, unlabeled images are seen as in labelling.
        drawn = crops and config.pseudo.noise
        specs.append(
            StreamConfig("pseudo", entries, split, pseudo, soft, config.pseudo.temperature, drawn, selection.copied_images)
        )
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
