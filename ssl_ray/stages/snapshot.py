"""The encoder of a moment of its pretraining, as a checkpoint of its own."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ssl_ray.artifacts import Checkpoint
from ssl_ray.config import Config
from ssl_ray.errors import ConfigError
from ssl_ray.scale import Scale
from ssl_ray.stage import stage
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
    for name in ("model.safetensors", "history.jsonl", "model.json"):
        out.write_bytes(name, kept.read_bytes(name))
    return {"summary": f"step {config.step:,} of {model.record.name}", "step": config.step}
