"""One training run on Ray Train: workers up, the loop inside, checkpoints out.

Torch is imported by the workers only: Ray's controller process unpickles what stands at the top of this module.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from typing import Any

from ssl_ray.artifacts import Checkpoint, Corpus, PseudoLabels, Selection
from ssl_ray.cluster import check_resources, cores_for, ensure_ray, own_error
from ssl_ray.errors import ResourceError
from ssl_ray.scale import Scale
from ssl_ray.storage import Folder, absolute

STATE = "state.pt"


def fit(
    config: dict[str, Any],
    out: Folder,
    scale: Scale,
    *,
    images: Corpus,
    labels: PseudoLabels | None,
    selection: Selection | None,
    start: Checkpoint | None,
) -> dict[str, Any]:
    """Train, and leave `model.safetensors` and `model.json` in `out`. Called again after a kill, it goes on.

    Args:
        config: a `TrainConfig` as plain data.

    Returns:
        The last history entry and the timing of the run.

    Raises:
        ResourceError: more workers than the cluster has, or a number that would change the results.
    """
    check_scale(config, scale)
    ensure_ray(scale)
    check_resources("scale.train_workers", scale.train_workers, scale.train_cpus, scale.train_gpus)
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

    from ssl_ray.train.backend import make_trainer

    storage = absolute(out.path)
    payload = {
        "config": config,
        "out": storage,
        "images": absolute(images.path),
        "labels": absolute(labels.path) if labels else None,
        "selection": absolute(selection.path) if selection else None,
        "start": absolute(start.path) if start else None,
        "scale": scale.model_dump(mode="json"),
    }
    resources = {"CPU": scale.train_cpus} | ({"GPU": scale.train_gpus} if scale.train_gpus else {})
    begin = time.time()
    trainer = make_trainer(
        train_worker,
        payload,
        ScalingConfig(num_workers=scale.train_workers, resources_per_worker=resources, use_gpu=scale.train_gpus > 0),
        RunConfig(
            name="training",
            storage_path=storage,
            failure_config=FailureConfig(max_failures=scale.max_failures, controller_failure_limit=2),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        result = trainer.fit()
    except Exception as error:
        raise own_error(error) from error
    summary = dict(result.return_value)
    summary["start_s"] = round(summary.pop("began") - begin, 3)
    summary["stop_s"] = round(time.time() - summary.pop("ended"), 3)
    return summary


def check_scale(config: dict[str, Any], scale: Scale) -> None:
    """Refuse a number of workers that does not fit the recipe."""
    workers, lanes = scale.train_workers, config["lanes"]
    if lanes % workers:
        allowed = ", ".join(str(n) for n in range(1, lanes + 1) if lanes % n == 0)
        raise ResourceError(f"{workers} training workers do not divide the recipe's {lanes} lanes; take one of {allowed}")
    group = config["batch_norm"]
    if group != "sync":
        labeled = config["batch"] if config["mix"] != "pseudo" else 0
        pseudo = config["batch"] * config["ratio"] if config["mix"] != "labeled" else 0
        local = (labeled + pseudo) // workers
        if local != group:
            raise ResourceError(
                f"batch_norm={group} asks for statistics over {group} images of one worker, and {workers} workers hold {local} "
                f"each; take {max(1, (labeled + pseudo) // group)} workers, or batch_norm=sync"
            )


def train_worker(payload: dict[str, Any]) -> dict[str, Any]:
    """Runs on every worker. Rank 0 logs, saves, and writes the final model."""
    began = time.time()
    import ray.train
    import torch

    from ssl_ray.data.loader import host_batches
    from ssl_ray.methods.self_training import SelfTraining, TrainConfig
    from ssl_ray.nets.weights import own_checkpoint
    from ssl_ray.train.loop import Loop
    from ssl_ray.train.optim import total_steps
    from ssl_ray.train.streams import make_streams

    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    scale = Scale.model_validate(payload["scale"])
    config = TrainConfig.model_validate(payload["config"])
    torch.set_num_threads(cores_for(context.get_local_world_size(), scale.train_threads))
    device = torch.device("cuda", torch.cuda.current_device()) if scale.train_gpus else torch.device("cpu")

    images = Corpus(payload["images"])
    labels = PseudoLabels(payload["labels"]) if payload["labels"] else None
    selection = Selection(payload["selection"]) if payload["selection"] else None
    streams = make_streams(config, images, labels, selection, rank=rank, workers=workers, scale=scale)
    steps_per_epoch = images.num_images("train") / config.batch
    method = SelfTraining(config, len(images.classes))
    start = own_checkpoint(payload["start"]) if payload["start"] else None
    loop = Loop(
        config, method, start,
        steps=total_steps(config.schedule, steps_per_epoch), steps_per_epoch=steps_per_epoch, device=device, workers=workers,
    )  # fmt: skip
    if (saved := ray.train.get_checkpoint()) is not None:
        with saved.as_directory() as folder:
            loop.load_state_dict(torch.load(os.path.join(folder, STATE), map_location=device, weights_only=True))
        if rank == 0:
            print(f"training goes on at step {loop.state.step} of {loop.steps}", flush=True)

    def log(entry: dict[str, float]) -> None:
        if rank == 0:
            print(
                f"step {entry['step']:.0f}/{loop.steps}  loss {entry['loss']:.3f}  {entry['images_per_s']:,.0f} images/s  "
                f"waiting for data {entry['data_wait']:.0%}",
                flush=True,
            )

    def save() -> None:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if rank == 0:
                torch.save(loop.state_dict(), os.path.join(folder, STATE))
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(
                {"step": loop.state.step}, checkpoint=checkpoint, checkpoint_dir_name=f"step-{loop.state.step:08d}"
            )

    first = loop.state.step
    work = time.time()
    loop.run(
        host_batches(streams, first, loop.steps),
        log_steps=max(1, loop.steps // 8),
        log=log,
        save_steps=scale.checkpoint_steps,
        save=save,
    )
    worked = time.time() - work
    if rank == 0:
        write_model(Folder(payload["out"]), method.describe() | {"classes": images.classes}, loop)
    last = loop.state.history[-1] if loop.state.history else {}
    done = (loop.steps - first) * sum(config.per_step())
    return {
        "began": began,
        "setup_s": round(work - began, 3),
        "work_s": round(worked, 3),
        "ended": time.time(),
        "steps": loop.steps,
        "first_step": first,
        "precision": "bfloat16" if loop.bfloat16 else "float32",
        "parameters": sum(parameter.numel() for parameter in loop.model.net.parameters()),
        "images_per_s": round(done / worked, 1) if done else 0.0,
        "last": last,
        "workers": workers,
    }


def write_model(out: Folder, description: dict[str, Any], loop: Any) -> None:
    """The weights to use, as safetensors, the description, and the history. Writing them twice gives the same files."""
    from safetensors.torch import save

    weights = {key: value.detach().cpu().contiguous() for key, value in loop.model.used.state_dict().items()}
    out.write_bytes("model.safetensors", save(weights))
    out.write_json("model.json", description)
    out.write_bytes("history.jsonl", "".join(json.dumps(entry) + "\n" for entry in loop.state.history).encode())
