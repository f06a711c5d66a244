"""A step of SimCLR on one worker and on two, the queue, and the watch over collapse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_ray.artifacts import Corpus, Shard
from ssl_ray.config import override
from ssl_ray.data.loader import assemble, host_batches
from ssl_ray.errors import ConfigError, HealthError, SourceError
from ssl_ray.methods.collapse import Watch, effective_rank, feature_spread
from ssl_ray.methods.memory import Queue
from ssl_ray.methods.method import move_average
from ssl_ray.methods.simclr import SimCLR
from ssl_ray.scale import local
from ssl_ray.settings.pretraining import SimCLRConfig
from ssl_ray.train.loop import Loop, Step, parallel, to_device
from ssl_ray.train.streams import make_streams
from tests.workers import on_workers

CONFIG = override(
    SimCLRConfig(),
    {
        "net": {"name": "resnet:18", "multiplier": 0.125, "small_image": True},
        "projection": {"layers": 3, "dim": 16},
        "batch": 16,
        "memory": {"size": 48, "ema": 0.9},
        "optim": {"name": "lars", "lr": 0.1, "scaling": "sqrt"},
        "schedule": {"length": 6},
        "precision": "float32",
    },
)


def _steps(rank: int, world: int, path: str, steps: int) -> dict[str, torch.Tensor]:
    """Some steps of this worker's part: the last loss and gradients, all weights, and the queue."""
    torch.set_num_threads(1)
    images, cpu = Corpus(path), torch.device("cpu")
    loop = Loop(SimCLR(CONFIG), None, steps=steps, steps_per_epoch=1.0, device=cpu, workers=world)
    streams = make_streams(CONFIG, images, None, None, rank=rank, workers=world, scale=local())
    loop.model.double()  # so that what differs is the algorithm, not the order of float32 sums
    for encoder in (loop.model.net, loop.model.average):
        encoder.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    module: torch.nn.Module = Step(loop.method, loop.model)
    if world > 1:
        module = parallel(module)
    loop.method.set_training(loop.model)
    for step in range(steps):
        loss, metrics = module(to_device(assemble(streams, step), cpu), step)
        loop.optimizer.zero_grad()
        loss.backward()
        loop.optimizer.step()
        loop.method.after_step(loop.model, step)
    gradients = {f"gradient.{name}": p.grad for name, p in loop.model.net.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **metrics, **gradients, **loop.model.state_dict()}


def test_three_workers_with_unequal_shares_equal_one(digits: Corpus, tmp_path: Path) -> None:
    """Views, global batch norm, the gather, LARS, the moving average and the queue: all the same."""
    one = _steps(0, 1, digits.path, 4)
    several = on_workers(3, _steps, (digits.path, 4), tmp_path)
    assert sum(key.startswith("gradient.") for key in one) > 60
    torch.testing.assert_close(torch.stack([part["loss"] for part in several]).mean(), one["loss"], atol=1e-5, rtol=0)
    for key, value in one.items():
        if key in ("loss", "contrastive_accuracy"):
            continue
        for part in several:
            if key.startswith("watch."):
                continue  # nothing was looked at
            torch.testing.assert_close(part[key], value, atol=1e-5, rtol=1e-5, msg=key)
    assert int(one["queue.filled"]) == 48
    assert int(one["queue.pointer"]) == 64 % 48


def test_the_memory_makes_the_task_harder_and_is_in_the_checkpoint(digits: Corpus) -> None:
    loop = Loop(SimCLR(CONFIG), None, steps=2, steps_per_epoch=1.0, device=torch.device("cpu"))
    streams = make_streams(CONFIG, digits, None, None, rank=0, workers=1, scale=local())
    batch = to_device(assemble(streams, 0), torch.device("cpu"))
    loop.method.set_training(loop.model)
    empty, _ = loop.method.loss(loop.model, batch, 0)
    loop.method.after_step(loop.model, 0)
    held, _ = loop.method.loss(loop.model, batch, 0)
    assert held > empty
    keys = set(loop.state_dict()["model"])
    assert {"queue.keys", "queue.pointer", "queue.filled"} < keys
    assert any(key.startswith("average.") for key in keys)


def test_a_restart_gives_the_same_weights_and_queue(digits: Corpus, tmp_path: Path) -> None:
    def advance(loop: Loop, stop: int) -> None:
        streams = make_streams(CONFIG, digits, None, None, rank=0, workers=1, scale=local())
        loop.steps = stop
        batches = host_batches(streams, loop.state.step, stop)
        loop.run(batches, log_steps=2, log=lambda entry: None, save_steps=100, save=lambda: None)

    def make() -> Loop:
        return Loop(SimCLR(CONFIG), None, steps=6, steps_per_epoch=1.0, device=torch.device("cpu"))

    whole, first, second = make(), make(), make()
    advance(whole, 4)
    advance(whole, 6)
    advance(first, 4)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    advance(second, 6)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key
    assert int(second.model.queue.pointer) == 0
    assert [entry["step"] for entry in second.state.history] == [2, 4, 6]


def test_two_crops_of_every_image_are_drawn_while_decoding(digits: Corpus) -> None:
    config = override(CONFIG, {"view.decode_crops": True, "view.crop": 0.3})
    [stream] = make_streams(config, digits, None, None, rank=0, workers=1, scale=local())
    batch = to_device(assemble([stream], 0), torch.device("cpu"))
    assert batch.images.shape == (32, 3, 28, 28)
    assert len(batch) == 16
    first, second = batch.images.float().chunk(2)
    assert (first - second).abs().mean() > 5, "two different crops"
    method = SimCLR(config)
    model = method.build()
    method.set_training(model)
    loss, _ = method.loss(model, batch, 0)
    loss.backward()
    with pytest.raises(AssertionError):
        torch.testing.assert_close(*method.views(batch, 0))


def test_broken_and_leaked_images_are_replaced(digits: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """No labelling has looked at them: the next good one of the shard stands for a broken one; too many stop."""
    from ssl_ray.data import store

    read, broken = store.read_encoded, 1

    def damaged(corpus: Corpus, shard: Shard, rows: np.ndarray, pool: object = None) -> list[bytes]:
        data = read(corpus, shard, rows)
        return [b"no image" if row < broken else item for row, item in zip(rows.tolist(), data, strict=True)]

    monkeypatch.setattr(store, "read_encoded", damaged)
    config = override(CONFIG, {"batch": 400, "memory": None})
    [stream] = make_streams(config, digits, None, None, rank=0, workers=1, scale=local())
    images, _ = stream.batch(0)
    assert images.shape[0] == 400
    parts = [make_streams(config, digits, None, None, rank=rank, workers=4, scale=local())[0].batch(0)[0] for rank in range(4)]
    np.testing.assert_array_equal(np.concatenate(parts), images)  # the same stand-ins on any number of workers
    assert stream.replaced == 4, "one of every shard"
    broken = 90
    [stream] = make_streams(config, digits, None, None, rank=0, workers=1, scale=local())
    with pytest.raises(
        SourceError,
        match=r"90 of 100 images of shard 0 cannot be decoded, more than 1%; the first is labeled/\d+, which cannot",
    ):
        stream.batch(0)


class TestQueue:
    def test_first_in_first_out(self) -> None:
        queue = Queue(6, 1)
        for start in range(0, 10, 2):
            queue.push(torch.tensor([[start], [start + 1]]), 1)
            assert len(queue.held()) == min(6, start + 2)
        assert queue.keys[:, 0].tolist() == [6, 7, 8, 9, 4, 5]
        assert int(queue.pointer) == 4

    def test_it_survives_a_checkpoint(self) -> None:
        queue, other = Queue(4, 2), Queue(4, 2)
        queue.push(torch.ones(2, 2), 1)
        other.load_state_dict(queue.state_dict())
        assert torch.equal(other.held(), torch.ones(2, 2))

    def test_a_batch_that_does_not_fit(self) -> None:
        with pytest.raises(ConfigError, match=r"memory\.size 50 does not hold whole batches of 16"):
            override(CONFIG, {"memory.size": 50})
        with pytest.raises(ValueError, match="do not divide"):
            Queue(6, 1).push(torch.zeros(4, 1), 1)


def test_the_moving_average_is_of_parameters() -> None:
    net, average = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    net.weight.data.fill_(3.0)
    net.running_mean.fill_(8.0)  # type: ignore[union-attr]
    move_average(average, net, 0.75, buffers=False)
    assert average.weight.tolist() == [1.5, 1.5]
    assert average.running_mean.tolist() == [0.0, 0.0]  # type: ignore[union-attr]
    move_average(average, net, 0.75)
    assert average.running_mean.tolist() == [2.0, 2.0]  # type: ignore[union-attr]


class TestCollapse:
    def test_closed_forms(self) -> None:
        torch.manual_seed(0)
        spread = torch.randn(4000, 16)
        assert feature_spread(spread) == pytest.approx(1.0, abs=0.02)
        assert feature_spread(torch.ones(50, 16)) == pytest.approx(0.0, abs=1e-6)
        assert effective_rank(spread) == pytest.approx(16, abs=0.2)
        line = torch.randn(200, 1) @ torch.randn(1, 16)
        assert effective_rank(line) == pytest.approx(1.0, abs=0.01)

    def test_a_collapsed_run_stops(self) -> None:
        watch = Watch()
        nearly = torch.ones(64, 8) + 1e-4 * torch.randn(64, 8)
        watch(nearly, 10)
        restarted = Watch()
        restarted.load_state_dict(watch.state_dict())
        with pytest.raises(HealthError, match="collapsed at step 20"):
            restarted(nearly, 20)

    def test_one_bad_look_passes(self) -> None:
        watch = Watch()
        watch(torch.ones(64, 8), 10)
        assert watch(torch.randn(64, 8), 20)["effective_rank"] > 4
        watch(torch.ones(64, 8), 30)

    def test_a_healthy_start_is_not_taken_for_a_collapse(self, digits: Corpus) -> None:
        loop = Loop(SimCLR(CONFIG), None, steps=2, steps_per_epoch=1.0, device=torch.device("cpu"))
        streams = make_streams(
            override(CONFIG, {"batch": 64, "memory": None}), digits, None, None, rank=0, workers=1, scale=local()
        )
        loop.method.set_training(loop.model)
        loop.method.loss(loop.model, to_device(assemble(streams, 0), torch.device("cpu")), 0)
        found = loop.method.measure(loop.model, 1)
        assert found["feature_std"] > 0.1
        assert found["effective_rank"] > 3
