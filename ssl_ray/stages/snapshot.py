"""The encoder of a moment of its pretraining, as a checkpoint of its own: of a step, or of the best one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ssl_ray.artifacts import Checkpoint, Scores
from ssl_ray.config import Config
from ssl_ray.errors import ConfigError
from ssl_ray.scale import Scale
from ssl_ray.stage import stage
from ssl_ray.stages.probe import validated
from ssl_ray.storage import Folder
from ssl_ray.train.snapshots import snapshot_folder


class SnapshotConfig(Config):
    step: Annotated[int, Field(ge=1)]


@stage(Checkpoint)
def snapshot(config: SnapshotConfig, out: Folder, scale: Scale, *, model: Checkpoint) -> dict[str, Any]:
    """What `pretrain` kept after a step, copied, so that everything that takes a checkpoint takes it.

    Raises:
        ConfigError: nothing was kept after this step.
    """
    kept = model.folder / snapshot_folder(config.step)
    if not kept.exists("model.json"):
        raise ConfigError(f"{model.path} kept nothing after step {config.step}; add the step to the snapshots of its settings")
    _copy(kept, out)
    return {"summary": f"step {config.step:,} of {model.record.name}", "step": config.step}


class BestConfig(Config):
    """Nothing to set: validation decides."""


@stage(Checkpoint, derived=True)
def best(
    config: BestConfig, out: Folder, scale: Scale, *, models: list[Checkpoint], probes: list[Scores | None]
) -> dict[str, Any]:
    """The model whose linear probe validation likes best, the earliest of equals; the last one, where nothing was probed."""
    values = [None if probed is None else validated(probed) for probed in probes]
    known = [value for value in values if value is not None]
    index = values.index(max(known)) if known else len(models) - 1
    chosen, value = models[index], values[index]
    _copy(chosen.folder, out)
    step = chosen.results.get("steps", chosen.results.get("step", 0))
    judged = "" if value is None else f", linear probe on validation {value:.2%}"
    return {"summary": f"{chosen.record.name}, step {step:,}{judged}", "step": step, "val": value, "model": chosen.record.name}


def _copy(source: Folder, out: Folder) -> None:
    for name in ("model.safetensors", "history.jsonl", "model.json"):
        if source.exists(name):  # weights that others trained have no history
            out.write_bytes(name, source.read_bytes(name))
