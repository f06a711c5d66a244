"""Training on Ray Train: two workers give what one process gives, and errors come out as our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ssl_ray.artifacts import Corpus
from ssl_ray.cluster import own_error
from ssl_ray.config import override
from ssl_ray.errors import HealthError, ResourceError, SourceError
from ssl_ray.scale import Scale, inline
from ssl_ray.settings.pretraining import SimCLRConfig
from ssl_ray.settings.training import LoopConfig, TrainConfig
from ssl_ray.storage import Folder
from ssl_ray.train.fit import fit

CONFIG = override(
    TrainConfig(),
    {
        "net.width": 8,
        "net.dropout": 0.2,
        "batch": 32,
        "schedule.length": 8,
        "optim.lr": 0.02,
        "precision": "float32",
        "view.crop": "pad",
    },
)


SIMCLR = override(
    SimCLRConfig(),
    {
        "net.width": 8,
        "projection.dim": 16,
        "batch": 32,
        "memory": {"size": 128, "ema": 0.9},
        "schedule.length": 2,
        "temperature": 0.5,
        "optim": {"name": "lars", "lr": 0.005},
        "precision": "float32",
    },
)


def run(config: LoopConfig, out: Path, scale: Scale, images: Corpus) -> dict[str, Any]:
    method = "simclr" if isinstance(config, SimCLRConfig) else "self-training"
    return fit(method, config, Folder(str(out)), scale, images=images)


def test_two_ray_workers_give_what_one_process_gives(ray_session: None, digits: Corpus, tmp_path: Path, scale: Scale) -> None:
    """SimCLR: gather, global batch norm, queue. Two steps: a fresh contrastive net multiplies the rounding of float32 by about
    three with each; tests/methods/test_simclr.py goes further in float64."""
    two = override(scale, {"train_workers": 2, "train_cpus": 0.5, "checkpoint_steps": 1})
    result = run(SIMCLR, tmp_path / "two", two, digits)
    run(SIMCLR, tmp_path / "one", inline(), digits)
    assert result["workers"] == 2
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(losses[0]) == len(losses[1]) == 2
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key].float(), value.float(), atol=1e-3, rtol=1e-3, msg=key)


def test_our_own_error_comes_out_of_a_worker_at_once(ray_session: None, digits: Corpus, tmp_path: Path, scale: Scale) -> None:
    with pytest.raises(HealthError, match="not finite"):
        run(override(CONFIG, {"optim.lr": 1e30}), tmp_path / "x", scale, digits)


class TestScale:
    def test_lanes(self, digits: Corpus, tmp_path: Path, scale: Scale) -> None:
        with pytest.raises(ResourceError, match="take at most 4"):
            run(CONFIG, tmp_path, override(scale, {"train_workers": 5}), digits)

    def test_batch_norm_of_a_fixed_size(self, digits: Corpus, tmp_path: Path, scale: Scale) -> None:
        fixed = override(CONFIG, {"batch_norm": 16})
        fixed.check_workers(2)
        with pytest.raises(ResourceError, match="take 2 workers"):
            run(fixed, tmp_path, scale, digits)


def test_own_errors_are_found_behind_wrappings() -> None:
    mine = SourceError("mine")
    outer, middle = RuntimeError("outer"), RuntimeError("middle")
    outer.__cause__, middle.cause = middle, mine  # type: ignore[attr-defined]
    assert own_error(outer) is mine
    other = RuntimeError("other")
    assert own_error(other) is other
    group = RuntimeError("group")
    group.worker_failures = {1: mine}  # type: ignore[attr-defined]
    assert own_error(group) is mine
