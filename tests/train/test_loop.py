"""The loop without Ray: a restart changes nothing, and two workers are one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_ray.artifacts import Corpus
from ssl_ray.config import override
from ssl_ray.data.loader import HostBatch, Lane, assemble, host_batches, make_lanes
from ssl_ray.data.store import Entries
from ssl_ray.errors import HealthError
from ssl_ray.methods.method import Batch
from ssl_ray.methods.self_training import SelfTraining
from ssl_ray.scale import local
from ssl_ray.settings.training import ScheduleConfig, TrainConfig
from ssl_ray.train.loop import Loop, Step, parallel
from ssl_ray.train.optim import learning_rate, total_steps
from ssl_ray.train.streams import make_streams
from tests.workers import on_workers

CONFIG = override(
    TrainConfig(),
    {
        "net.width": 8,
        "net.dropout": 0.3,
        "net.stochastic_depth": 0.3,
        "view.crop": "pad",
        "view.randaugment": {"magnitude": 5, "pool": "code", "translate": 4, "cutout": 4},
        "batch": 16,
        "schedule.length": 12,
        "precision": "float32",
        "ema": 0.9,
    },
)


def make_loop(config: TrainConfig, workers: int = 1) -> Loop:
    return Loop(
        SelfTraining(config, 10), None,
        steps=int(config.schedule.length), steps_per_epoch=6.25, device=torch.device("cpu"), workers=workers,
    )  # fmt: skip


def run(loop: Loop, images: Corpus, stop_after: int | None = None, rank: int = 0, workers: int = 1) -> None:
    streams = make_streams(loop.config, images, None, None, rank=rank, workers=workers, scale=local())

    class Killed(Exception):
        pass

    def save() -> None:
        if stop_after is not None and loop.state.step >= stop_after:
            raise Killed

    try:
        batches = host_batches(streams, loop.state.step, loop.steps)
        loop.run(batches, log_steps=4, log=lambda entry: None, save_steps=1, save=save)
    except Killed:
        batches.close()  # type: ignore[attr-defined]


def test_a_restart_gives_the_same_weights_bit_for_bit(digits: Corpus, tmp_path: Path) -> None:
    whole = make_loop(CONFIG)
    run(whole, digits)
    first = make_loop(CONFIG)
    run(first, digits, stop_after=5)
    assert first.state.step == 5
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make_loop(CONFIG)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    run(second, digits)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key
    assert [entry["step"] for entry in second.state.history] == [4, 8, 12]


def test_a_notice_saves_at_once_and_often_until_the_node_went(digits: Corpus) -> None:
    loop = make_loop(override(CONFIG, {"schedule.length": 40}))
    streams = make_streams(loop.config, digits, None, None, rank=0, workers=1, scale=local())
    asked: list[int] = []
    saves: list[int] = []

    def notice() -> bool:
        asked.append(loop.state.step)
        return 10 <= loop.state.step < 20

    loop.run(
        host_batches(streams, 0, loop.steps), log_steps=40, log=lambda entry: None, save_steps=24,
        save=lambda: saves.append(loop.state.step), notice=notice, notice_steps=2,
    )  # fmt: skip
    assert asked == list(range(2, 41, 2))
    assert saves == [10, 14, 18, 24]


def _gradients(rank: int, world: int, path: str) -> dict[str, torch.Tensor]:
    """Loss and gradients of one step under all noise, from this worker's part of the batch."""
    images = Corpus(path)
    loop = make_loop(CONFIG, world)
    streams = make_streams(CONFIG, images, None, None, rank=rank, workers=world, scale=local())
    batch = assemble(streams, 3)
    whole = Batch(
        torch.from_numpy(batch.images).permute(0, 3, 1, 2), torch.from_numpy(batch.labeled), None, batch.rows, batch.total
    )
    loop.model.double()  # so that what differs is the algorithm, not the order of float32 sums
    loop.model.net.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    module: torch.nn.Module = Step(loop.method, loop.model)
    if world > 1:
        module = parallel(module)
    loop.method.set_training(loop.model)
    loss, _ = module(whole, 3)
    loss.backward()
    found = {name: parameter.grad for name, parameter in loop.model.net.named_parameters() if parameter.grad is not None}
    return {"loss": loss.detach(), **found, **{f"buffer.{k}": v for k, v in loop.model.net.named_buffers()}}


@pytest.mark.parametrize("workers", [2, 3])
def test_several_workers_equal_one_in_loss_and_gradient(workers: int, digits: Corpus, tmp_path: Path) -> None:
    """RandAugment, dropout, stochastic depth and batch norm included; three workers hold 1, 1 and 2 of four lanes."""
    one = _gradients(0, 1, digits.path)
    several = on_workers(workers, _gradients, (digits.path,), tmp_path)
    mean = torch.stack([part["loss"] for part in several]).mean()
    torch.testing.assert_close(mean, one["loss"], atol=1e-9, rtol=1e-9)
    assert len(one) > 20
    for key, value in one.items():
        for part in several if key != "loss" else ():
            torch.testing.assert_close(part[key], value, atol=1e-9, rtol=1e-7, msg=key)


def test_workers_read_disjoint_parts_of_the_same_batch(digits: Corpus) -> None:
    def batch(rank: int, workers: int) -> HostBatch:
        return assemble(make_streams(CONFIG, digits, None, None, rank=rank, workers=workers, scale=local()), 5)

    whole, parts = batch(0, 1), [batch(rank, 4) for rank in range(4)]
    np.testing.assert_array_equal(whole.images, np.concatenate([part.images for part in parts]))
    np.testing.assert_array_equal(whole.labeled, np.concatenate([part.labeled for part in parts]))  # type: ignore[arg-type]
    np.testing.assert_array_equal(whole.rows, np.concatenate([part.rows for part in parts]))


class TestLanes:
    entries = Entries(
        np.repeat(np.arange(40), 5).astype(np.int32), np.tile(np.arange(5), 40).astype(np.int32), np.zeros(200, np.int32)
    )

    def test_an_epoch_shows_every_entry_once(self) -> None:
        lanes = make_lanes(self.entries, 4, range(4), (0,))
        seen = np.concatenate([lane.take(len(lane.index), len(lane.index)) for lane in lanes])  # the second epoch
        assert sorted(seen) == list(range(200))

    def test_whole_shards_are_dealt_where_there_are_enough(self) -> None:
        lanes = make_lanes(self.entries, 4, range(4), (0,))
        shards = [set(self.entries.shard[lane.index]) for lane in lanes]
        assert sum(len(part) for part in shards) == 40, "no shard is read by two lanes"

    def test_seeking_equals_reading_on(self) -> None:
        lane = make_lanes(self.entries, 4, range(1), (0,))[0]
        through = np.concatenate([lane.take(i * 7, 7) for i in range(20)])
        other = make_lanes(self.entries, 4, range(1), (0,))[0]
        np.testing.assert_array_equal(other.take(91, 49), through[91:140])

    def test_epochs_differ(self) -> None:
        lane = Lane(np.arange(50), np.zeros(50, np.int32), (0,))
        first, second = lane.take(0, 50), lane.take(50, 50)
        assert sorted(first) == sorted(second)
        assert not np.array_equal(first, second)

    def test_fewer_images_than_lanes(self) -> None:
        few = Entries(*(np.arange(3, dtype=np.int32) for _ in range(3)))
        lanes = make_lanes(few, 8, range(8), (0,))
        assert {int(i) for lane in lanes for i in lane.take(0, 4)} == {0, 1, 2}


def test_a_loss_that_is_not_finite_stops(digits: Corpus) -> None:
    loop = make_loop(override(CONFIG, {"optim.lr": 1e30}))
    with pytest.raises(HealthError, match=r"not finite.*--rerun"):
        run(loop, digits)


def test_an_error_in_the_batch_thread_reaches_the_loop() -> None:
    class Broken:
        def batch(self, step: int) -> Any:
            raise ValueError("broken shard")

    with pytest.raises(ValueError, match="broken shard"):
        next(host_batches([Broken()], 0, 3))  # type: ignore[list-item]


class TestSchedule:
    def test_cosine_with_warmup(self) -> None:
        config = ScheduleConfig(length=100, warmup=10)
        rates = [learning_rate(config, 1.0, step, 1) for step in range(100)]
        assert rates[0] == pytest.approx(1 / 11)
        assert max(rates) == rates[10] == 1.0
        assert rates[55] == pytest.approx(0.5)
        assert rates[99] < 0.001

    def test_the_paper_s_staircase(self) -> None:
        """0.97 every 2.4 epochs: 350 epochs end at 0.97^145."""
        config = ScheduleConfig(unit="epochs", length=350, warmup=5, decay="staircase")
        assert total_steps(config, 100) == 35_000
        assert learning_rate(config, 0.128, 34_999, 100) == pytest.approx(0.128 * 0.97**145)
        assert learning_rate(config, 0.128, 0, 100) < 0.001

    def test_constant(self) -> None:
        assert learning_rate(ScheduleConfig(decay="constant"), 0.3, 200, 1) == 0.3
