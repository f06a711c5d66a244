"""What one worker of a training run does, whoever started it. Rank 0 logs, saves, and writes the final model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ssl_ray.artifacts import Corpus, PseudoLabels, Selection
from ssl_ray.cluster import cores_for
from ssl_ray.data.loader import host_batches, labeled_entries
from ssl_ray.data.shards import decoding_of
from ssl_ray.machine import check_pixels, use_threads
from ssl_ray.methods.jigsaw import Jigsaw
from ssl_ray.methods.layer_probe import LayerProbe
from ssl_ray.methods.method import Method
from ssl_ray.methods.moco import MoCo
from ssl_ray.methods.scenes import SceneTraining
from ssl_ray.methods.self_training import SelfTraining
from ssl_ray.methods.simclr import SimCLR
from ssl_ray.models import load_model
from ssl_ray.nets.weights import own_checkpoint
from ssl_ray.progress import time_left
from ssl_ray.scale import Scale, device_for
from ssl_ray.settings.pretraining import PRETEXT_METRICS, JigsawConfig, MoCoConfig, PretrainConfig, SimCLRConfig
from ssl_ray.settings.training import (
    DetectionConfig,
    LabeledConfig,
    LayerProbeConfig,
    LoopConfig,
    SceneConfig,
    SegmentationConfig,
    TrainConfig,
)
from ssl_ray.storage import Folder
from ssl_ray.train.loop import Loop
from ssl_ray.train.neighbours import neighbours
from ssl_ray.train.optim import total_steps
from ssl_ray.train.snapshots import snapshot_folder
from ssl_ray.train.streams import make_streams


class Data(NamedTuple):
    """What a method may ask of the data, besides its batches."""

    classes: list[str]
    teacher: str | None  # folder of the model that labels while the student learns
    other: Corpus | None  # the images beside, for joint training


def _self_training(config: Any, data: Data, device: torch.device) -> Method:
    model = load_model(data.teacher).to(device) if data.teacher else None
    return SelfTraining(config, len(data.classes), model)


def _scenes(config: Any, data: Data, device: torch.device) -> Method:
    return SceneTraining(config, len(data.classes), len(data.other.classes) if data.other is not None else 0)


METHODS: dict[str, tuple[type[LoopConfig], Callable[[Any, Data, torch.device], Method]]] = {
    "self-training": (TrainConfig, _self_training),
    "detection": (DetectionConfig, _scenes),
    "segmentation": (SegmentationConfig, _scenes),
    "layer-probe": (LayerProbeConfig, lambda config, data, device: LayerProbe(config, len(data.classes))),
    "simclr": (SimCLRConfig, lambda config, data, device: SimCLR(config)),
    "moco": (MoCoConfig, lambda config, data, device: MoCo(config)),
    "jigsaw": (JigsawConfig, lambda config, data, device: Jigsaw(config)),
}
"""All methods: their settings, and how one is made."""


def run_training(
    payload: dict[str, Any],
    *,
    began: float,
    rank: int,
    workers: int,
    workers_on_node: int,
    restored: dict[str, Any] | None,
    save: Callable[[int, dict[str, Any] | None], None],
    notice: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Train from the restored state, or from the beginning, to the last step.

    Args:
        payload: paths and settings as plain data, from `fit`.
        began: when this worker started, seconds since the epoch.
        restored: the state of the last checkpoint.
        notice: whether a node is to be taken away; called by all workers at the same steps, and answered alike.
        save: takes the step and, on rank 0, the state; called by all workers at the same steps.

    Returns:
        Counts and timings for the record.
    """
    scale = Scale.model_validate(payload["scale"])
    settings, make_method = METHODS[payload["method"]]
    config = settings.model_validate(payload["config"])
    use_threads(cores_for(workers_on_node, scale.train_threads), "scale.train_threads")
    device = torch.device(device_for(scale.train_gpus, "scale.train_gpus"))
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())

    check_pixels(config.most_images(workers), config.preprocess.size, "batch, ratio or preprocess.size")

    images = Corpus(payload["images"])
    labels = PseudoLabels(payload["labels"]) if payload["labels"] else None
    selection = Selection(payload["selection"]) if payload["selection"] else None
    other = Corpus(payload["other"]) if payload["other"] else None
    streams = make_streams(config, images, labels, selection, rank=rank, workers=workers, scale=scale, other=other)
    # A student of pseudo-labels alone learns their classes, which need not be the corpus's: clusters, for one.
    classes = images.classes
    if labels is not None and isinstance(config, TrainConfig | SceneConfig) and config.mix == "pseudo":
        classes = list(labels.results["classes"])
    # An epoch is one of the labeled images, also where only their pseudo-labels are seen; of all images of the first stream
    # where there are no labels, or labels of another kind.
    counted = isinstance(config, LabeledConfig | SceneConfig) and classes == images.classes and images.num_images("train") > 0
    epoch = len(labeled_entries(images, config.subset)) if counted else len(streams[0].config.entries)  # type: ignore[attr-defined]
    steps_per_epoch = epoch / config.batch
    method = make_method(config, Data(classes, payload["teacher"], other), device)

    def new_loop() -> Loop:
        return Loop(
            method,
            own_checkpoint(payload["start"]) if payload["start"] else None,
            steps=total_steps(config.schedule, steps_per_epoch),
            steps_per_epoch=steps_per_epoch,
            device=device,
            workers=workers,
        )

    loop = new_loop()
    if restored is not None:
        try:
            loop.load_state_dict(restored)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            print(f"the saved state does not fit this training ({' '.join(str(error).split())[:200]})", flush=True)
            loop, restored = new_loop(), None  # all workers read the same state, and decide alike
    if restored is not None and rank == 0:
        print(f"training goes on at step {loop.state.step} of {loop.steps}", flush=True)

    def log(entry: dict[str, float]) -> None:
        if rank == 0:
            shown = [f"{name.replace('_', ' ')} {entry[name]:.1%}  " for name in PRETEXT_METRICS if name in entry]
            if {"loss_labeled", "loss_pseudo"} <= set(entry):
                shown.append(f"labels {entry['loss_labeled']:.3f}, pseudo-labels {entry['loss_pseudo']:.3f}  ")
            contrast, done = "".join(shown), entry["step"]
            if len(loop.state.history) == 1:
                print(f"first steps done {time.time() - payload['job_began']:.0f} s after the job began", flush=True)
            print(
                f"step {done:.0f}/{loop.steps}  loss {entry['loss']:.3f}  {contrast}"
                f"{entry['images_per_s']:,.0f} images/s  waiting for data {entry['data_wait']:.0%}"
                f"{time_left(done - first, loop.steps - first, time.time() - work)}",
                flush=True,
            )

    out, description = Folder(payload["out"]), {"classes": classes} | method.describe()
    description["decoding"] = decoding_of(images).model_dump(mode="json")

    def keep() -> None:
        """The model of this step, for use; the last one is the stage's own."""
        if rank == 0:
            step = loop.state.step
            write_model(out if step == loop.steps else out / snapshot_folder(step), description, loop)

    first, work = loop.state.step, time.time()
    loop.run(
        host_batches(streams, first, loop.steps),
        log_steps=min(max(1, loop.steps // 8), 500),
        log=log,
        save_steps=scale.checkpoint_steps,
        notice=notice,
        notice_steps=scale.notice_steps,
        save=lambda: save(loop.state.step, loop.state_dict() if rank == 0 else None),
        look=neighbours(images, config, scale) if isinstance(config, PretrainConfig) and not rank else None,
        snapshots=config.snapshots if isinstance(config, PretrainConfig) else (),
        keep=keep,
    )
    worked = time.time() - work
    done = (loop.steps - first) * config.images_per_step()
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
        "last": loop.state.history[-1] if loop.state.history else {},
        "workers": workers,
        "loaded": sum(stream.loading[0] for stream in streams),  # images of this worker, as often as they were read
        "load_s": round(sum(stream.loading[1] for stream in streams), 3),
        "replaced": sum(stream.replaced for stream in streams),  # images of this worker that could not be used
    }


def write_model(out: Folder, description: dict[str, Any], loop: Loop) -> None:
    """The weights to use, as safetensors, the description, and the history. Writing them twice gives the same weights."""
    from safetensors.torch import save

    weights = {key: value.detach().cpu().contiguous() for key, value in loop.model.used.state_dict().items()}
    out.write_bytes("model.safetensors", save(weights))
    out.write_json("model.json", description)
    out.write_bytes("history.jsonl", "".join(json.dumps(entry) + "\n" for entry in loop.state.history).encode())
