"""The one training loop. It knows nothing of Ray and nothing of what a step means."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ssl_ray.config import fingerprint
from ssl_ray.data.loader import HostBatch
from ssl_ray.distributed import loss_weight
from ssl_ray.errors import HealthError
from ssl_ray.methods.method import Batch, Method
from ssl_ray.nets.batchnorm import average_statistics, synchronise
from ssl_ray.precision import has_bfloat16
from ssl_ray.train.optim import learning_rate, make_optimizer


class Step(nn.Module):
    """The loss as a forward pass, so that DistributedDataParallel can wrap a whole step of any method.

    The loss is weighted such that its mean over the workers is the loss of the global batch.
    """

    def __init__(self, method: Method, model: nn.Module):
        super().__init__()
        self.method, self.model = method, model

    def forward(self, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, metrics = self.method.loss(self.model, batch, step)
        return loss * loss_weight(self.method.config.lanes), metrics


@dataclass
class LoopState:
    """What a checkpoint holds besides the weights."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class Loop:
    """A model on its way: build, restore, run, save."""

    def __init__(
        self,
        method: Method,
        start: dict[str, torch.Tensor] | None,
        *,
        steps: int,
        steps_per_epoch: float,
        device: torch.device,
        workers: int = 1,
    ):
        config = method.config
        self.config, self.method, self.device = config, method, device
        self.steps, self.steps_per_epoch, self.workers = steps, steps_per_epoch, workers
        self.model = method.build(start)
        if workers > 1 and config.batch_norm == "sync":
            for name, child in self.model.named_children():  # the net, and averages of it
                setattr(self.model, name, synchronise(child, device))
        self.model.to(device)
        self.optimizer = make_optimizer(self.model.net, config.optim)
        self.peak = config.optim.peak(config.images_per_step())
        self.state = LoopState()
        wanted = config.precision
        self.bfloat16 = wanted == "bfloat16" or (wanted == "auto" and has_bfloat16(device))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on: tensors and plain values only."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.state.step,
            "history": self.state.history,
            "config": fingerprint(self.config),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over a saved state.

        Raises:
            ValueError: it was saved with other settings, or after a step that this training does not have.
            KeyError, RuntimeError: it lacks a part, or was saved by another net.
        """
        if saved["config"] != fingerprint(self.config) or not 0 <= int(saved["step"]) <= self.steps:
            raise ValueError(f"it was saved after step {saved['step']}, or with other settings")
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.state = LoopState(int(saved["step"]), list(saved["history"]))

    def run(
        self,
        batches: Iterator[HostBatch],
        *,
        log_steps: int,
        log: Callable[[dict[str, float]], None],
        save_steps: int,
        save: Callable[[], None],
        look: Callable[[nn.Module], dict[str, float]] | None = None,
        snapshots: Collection[int] = (),
        keep: Callable[[], None] = lambda: None,
        notice: Callable[[], bool] | None = None,
        notice_steps: int = 1,
    ) -> None:
        """Train from the current step to the last.

        Args:
            batches: for steps [state.step, steps).
            log: receives step, loss, metrics, images/s (all workers) and the share of time spent waiting for data.
            look: more to measure, at the steps that are logged; its time counts as none of the training.
            save: called every `save_steps` steps, when the state is consistent; not after the last step.
            notice: asked every `notice_steps` steps whether a node is to be taken away; once it is, the state is saved at once,
                and eight times as often as usual until it went.
            keep: called after the steps in `snapshots` and after the last one, when the model is fit to be used.

        Raises:
            HealthError: the loss is not finite, or the method sees no point in going on.
        """
        step_module: nn.Module = Step(self.method, self.model)
        if self.workers > 1:
            step_module = parallel(step_module)
        self.method.set_training(self.model)
        broken = torch.full((), -1, device=self.device)  # the first step whose loss is not finite; read now and then only
        begin, waited, images = time.perf_counter(), 0.0, 0
        noticed, saved = False, self.state.step
        weight = loss_weight(self.config.lanes)
        for step in range(self.state.step, self.steps):
            asked = time.perf_counter()
            batch = to_device(next(batches), self.device)
            waited += time.perf_counter() - asked
            rate = learning_rate(self.config.schedule, self.peak, step, self.steps_per_epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group.get("factor", 1.0)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                loss, metrics = step_module(batch, step)
            broken = torch.where((broken < 0) & ~torch.isfinite(loss.detach()), step, broken)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if self.config.optim.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.model.net.parameters(), self.config.optim.clip_norm)
            self.optimizer.step()
            self.method.after_step(self.model, step)
            self.state.step = step + 1
            images += batch.total
            last = self.state.step == self.steps
            if self.state.step % log_steps == 0 or last:
                value = float(loss.detach())
                self._check_finite(value, step, broken)
                now = time.perf_counter()
                entry = {
                    "step": float(self.state.step),
                    "loss": value / weight,
                    "lr": rate,
                    "images_per_s": images / (now - begin),
                    "data_wait": waited / (now - begin),
                    **{key: float(metric) for key, metric in metrics.items()},
                    **self.method.measure(self.model, self.state.step),
                }
                looking = time.perf_counter()
                entry |= look(self.model) if look is not None else {}
                begin, waited, images = now + time.perf_counter() - looking, 0.0, 0
                self.state.history.append(entry)
                log(entry)
            if self.state.step in snapshots or last:
                self._check_finite(float(loss.detach()), step, broken)
                self._agree()
                keep()
            leaving = False
            if notice is not None and self.state.step % notice_steps == 0:
                before, noticed = noticed, notice()
                leaving = noticed and (not before or self.state.step - saved >= save_steps // 8)
            if (self.state.step % save_steps == 0 or leaving) and not last:
                self._check_finite(float(loss.detach()), step, broken)  # a broken state must not replace the last good one
                self._agree()
                save()
                saved = self.state.step
                begin = time.perf_counter() if images == 0 else begin

    def _agree(self) -> None:
        """Where norms look at the images of one worker, workers' running statistics differ; what is kept is their mean. They
        are linear in what was seen, so when it is taken does not matter."""
        if self.workers > 1 and self.config.batch_norm != "sync":
            average_statistics(self.model, self.config.lanes)

    def _check_finite(self, loss: float, step: int, broken: torch.Tensor) -> None:
        weights = torch.stack([parameter.detach().float().sum() for parameter in self.model.net.parameters()])
        first = int(broken)
        bad = torch.tensor(float(first >= 0 or not (math.isfinite(loss) and bool(torch.isfinite(weights).all()))))
        if self.workers > 1:  # a loss is one worker's own; all of them stop, or none
            bad = bad.to(self.device)
            torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
        if bool(bad):
            step = first if first >= 0 else step
            raise HealthError(
                f"the loss, or the weights after it, are not finite since step {step}; the last checkpoint is kept. Lower "
                "the optim.lr of this stage, or set its optim.clip_norm, and run it with --rerun"
            )


def parallel(module: nn.Module) -> nn.Module:
    """DistributedDataParallel that leaves buffers alone: they are the same on all workers, or rank 0's are kept, and a queue
    of keys is too large to send with every step."""
    ddp = nn.parallel.DistributedDataParallel
    newer = "forward_sync_buffers" in inspect.signature(ddp).parameters  # torch 2.14 renamed it
    options: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    return ddp(module, **options)


def to_device(batch: HostBatch, device: torch.device) -> Batch:
    """NumPy to tensors; images become [n, 3, H, W], channels last in memory without a copy."""

    def move(array: Any) -> Any:
        if array is None:
            return None
        if isinstance(array, dict):
            return {name: move(part) for name, part in array.items()}
        tensor = torch.from_numpy(array)
        return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

    return Batch(
        images=move(batch.images).permute(0, 3, 1, 2),
        labeled=move(batch.labeled),
        pseudo=move(batch.pseudo),
        rows=batch.rows,
        total=batch.total,
        beside=None if batch.beside is None else to_device(batch.beside, device),
    )
