"""A step of MoCo v2: its order, split and shuffled batch norm, one worker against two, HPT-BN."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from ssl_ray.artifacts import Corpus
from ssl_ray.config import override
from ssl_ray.data.loader import assemble, host_batches
from ssl_ray.errors import ConfigError, ResourceError
from ssl_ray.losses.contrastive import info_nce
from ssl_ray.methods.memory import Queue
from ssl_ray.methods.method import Batch
from ssl_ray.methods.moco import MoCo, WithKeys
from ssl_ray.nets.batchnorm import SplitBatchNorm, average_statistics, split
from ssl_ray.scale import local
from ssl_ray.settings.nets import NetConfig
from ssl_ray.settings.pretraining import MoCoConfig
from ssl_ray.train.loop import Loop, Step, parallel, to_device
from ssl_ray.train.streams import make_streams
from tests.workers import on_workers

CPU = torch.device("cpu")
CONFIG = override(
    MoCoConfig(),
    {
        "net": {"name": "resnet:18", "multiplier": 0.125, "small_image": True},
        "projection": {"layers": 2, "dim": 16, "norm": False},
        "batch": 16,
        "lanes": 4,
        "batch_norm": 4,
        "queue": 48,
        "ema": 0.9,
        "schedule": {"length": 6},
        "precision": "float32",
    },
)


def make_loop(config: MoCoConfig = CONFIG, workers: int = 1, steps: int = 6) -> Loop:
    return Loop(MoCo(config), None, steps=steps, steps_per_epoch=1.0, device=CPU, workers=workers)


def first_batch(config: MoCoConfig, digits: Corpus) -> Batch:
    return to_device(assemble(make_streams(config, digits, None, None, rank=0, workers=1, scale=local()), 0), CPU)


def _steps(rank: int, world: int, path: str, steps: int, changes: dict[str, object]) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    config = override(CONFIG, changes)
    loop = make_loop(config, world, steps)
    streams = make_streams(config, Corpus(path), None, None, rank=rank, workers=world, scale=local())
    loop.model.double()  # so that what differs is the algorithm, not the order of float32 sums
    for encoder in (loop.model.net, loop.model.keys):
        encoder.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    module: nn.Module = Step(loop.method, loop.model)
    if world > 1:
        module = parallel(module)
    loop.method.set_training(loop.model)
    for step in range(steps):
        loss, metrics = module(to_device(assemble(streams, step), CPU), step)
        loop.optimizer.zero_grad()
        loss.backward()
        loop.optimizer.step()
        loop.method.after_step(loop.model, step)
    if world > 1:
        average_statistics(loop.model, config.lanes)
    gradients = {f"gradient.{name}": p.grad for name, p in loop.model.net.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **metrics, **gradients, **loop.model.state_dict()}


@pytest.mark.parametrize(
    ("changes", "workers"),
    [({}, 3), ({"symmetric": True, "queue": 64}, 2), ({"batch_norm": "sync"}, 3)],
    ids=["split", "symmetric", "sync"],
)
def test_several_workers_equal_one(digits: Corpus, tmp_path: Path, changes: dict[str, object], workers: int) -> None:
    """Views, batch norm of groups, the shuffle over workers, both encoders, and what the queue holds: all the same."""
    one = _steps(0, 1, digits.path, 3, changes)
    several = on_workers(workers, _steps, (digits.path, 3, changes), tmp_path)
    assert sum(key.startswith("gradient.") for key in one) > 60
    torch.testing.assert_close(torch.stack([part["loss"] for part in several]).mean(), one["loss"], atol=1e-5, rtol=0)
    for key, value in one.items():
        if key in ("loss", "contrastive_accuracy") or key.startswith("watch."):
            continue
        for part in several:
            torch.testing.assert_close(part[key], value, atol=1e-5, rtol=1e-5, msg=key)
    new = 3 * (32 if "symmetric" in changes else 16)
    assert int(one["queue.pointer"]) == new % len(one["queue.keys"])


def test_a_step_is_in_the_order_of_the_authors_code(digits: Corpus) -> None:
    """The key encoder moves before it encodes, its keys carry no gradient, and they enter the queue after the loss."""
    loop = make_loop()
    batch, before = first_batch(CONFIG, digits), loop.model.queue.held().clone()
    with torch.no_grad():  # so that the two encoders differ
        for parameter in loop.model.net.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    query, key = ([p.clone() for p in net.parameters()] for net in (loop.model.net, loop.model.keys))
    loop.method.set_training(loop.model)
    loss, _ = loop.method.loss(loop.model, batch, 0)
    for moved, old, new in zip(loop.model.keys.parameters(), key, query, strict=True):
        torch.testing.assert_close(moved, 0.9 * old + 0.1 * new)
    assert torch.equal(loop.model.queue.held(), before)
    loss.backward()
    assert all(p.grad is None for p in loop.model.keys.parameters())
    loop.method.after_step(loop.model, 0)
    assert not torch.equal(loop.model.queue.held()[:16], before[:16])
    assert torch.equal(loop.model.queue.held()[16:], before[16:])
    torch.testing.assert_close(loop.model.queue.held().norm(dim=1), torch.ones(48))


def test_keys_come_back_in_order_from_the_shuffle(digits: Corpus) -> None:
    """With norms that look at nothing, shuffled keys are the plain ones; with norms of groups they are not those of the
    groups in which the queries stand."""
    method, model = MoCo(CONFIG), MoCo(CONFIG).build()
    batch = first_batch(CONFIG, digits)
    view = method.views(batch, 0)[1]
    model.eval()
    torch.testing.assert_close(method._keys(model, view, batch, 0, 1), F.normalize(model.keys(view)[1], dim=1))
    model.train()
    with torch.no_grad():
        in_place = F.normalize(model.keys(view)[1], dim=1)
    assert (method._keys(model, view, batch, 0, 1) - in_place).abs().max() > 1e-3


class TestSplitBatchNorm:
    x = torch.randn(12, 5, 3, 3, generator=torch.Generator().manual_seed(1)) * 2 + 1

    def test_every_group_is_normalised_by_itself(self) -> None:
        plain = nn.BatchNorm2d(5)
        norm = SplitBatchNorm(plain, 4)
        out = norm(self.x)
        for group in range(3):
            part = slice(4 * group, 4 * group + 4)
            torch.testing.assert_close(out[part], nn.BatchNorm2d(5)(self.x[part]))
        means = torch.stack([part.mean(dim=(0, 2, 3)) for part in self.x.split(4)])
        torch.testing.assert_close(norm.running_mean, 0.1 * means.mean(dim=0))
        variances = torch.stack([part.transpose(0, 1).flatten(1).var(dim=1) for part in self.x.split(4)])
        torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variances.mean(dim=0))

    def test_in_eval_mode_it_is_plain(self) -> None:
        net = nn.Sequential(nn.Conv2d(5, 5, 1), nn.BatchNorm2d(5), nn.BatchNorm2d(5))
        plain = [module.eval() for module in nn.Sequential(*net)]
        before = self.x
        for module in plain:
            before = module(before)
        keys = list(net.state_dict())
        changed = split(net, 4)
        assert sum(isinstance(module, SplitBatchNorm) for module in changed.modules()) == 2
        assert list(changed.state_dict()) == keys, "weights fit nets with plain norms"
        torch.testing.assert_close(changed.eval()(self.x), before)

    def test_what_does_not_part(self) -> None:
        with pytest.raises(ValueError, match="do not part into groups of 5"):
            SplitBatchNorm(nn.BatchNorm2d(5), 5)(self.x)


class TestLoss:
    def test_value_against_equal_keys(self) -> None:
        """All similarities are one: the loss is log of one positive and K negatives."""
        q = torch.ones(3, 4)
        unit = F.normalize(torch.ones(7, 4), dim=1)
        loss, _ = info_nce(q, unit[:3], unit, 0.2)
        assert float(loss) == pytest.approx(math.log(8))

    def test_against_a_slow_transcription(self) -> None:
        draw = torch.Generator().manual_seed(3)
        q = torch.randn(4, 6, generator=draw)
        k, queue = (F.normalize(torch.randn(n, 6, generator=draw), dim=1) for n in (4, 9))
        rows = []
        for i in range(4):
            u = q[i] / q[i].norm()
            up = math.exp(float(u @ k[i]) / 0.2)
            rows.append(-math.log(up / (up + sum(math.exp(float(u @ n) / 0.2) for n in queue))))
        assert float(info_nce(q, k, queue, 0.2)[0]) == pytest.approx(np.mean(rows), rel=1e-5)

    def test_accuracy(self) -> None:
        """The second of four queries is nearer to a key of the queue than to its own."""
        q, queue = torch.eye(4, 4), torch.tensor([[0.0, 1.0, 0.0, 0.0]])
        keys = F.normalize(torch.eye(4, 4) + 0.5, dim=1)
        assert float(info_nce(q, keys, queue, 0.2)[1]) == pytest.approx(0.75)


def test_the_queue_begins_with_random_unit_keys_and_wraps() -> None:
    queue = Queue(6, 3, seed=5)
    assert torch.equal(queue.held(), Queue(6, 3, seed=5).held())
    assert not torch.equal(queue.held(), Queue(6, 3, seed=6).held())
    torch.testing.assert_close(queue.held().norm(dim=1), torch.ones(6))
    for value in range(4):
        queue.put(torch.full((2, 3), float(value)))
    assert queue.held()[:, 0].tolist() == [3, 3, 1, 1, 2, 2]
    assert int(queue.pointer) == 2


class TestHPTBN:
    def run_steps(self, trains: str, digits: Corpus) -> tuple[dict[str, torch.Tensor], WithKeys]:
        config = override(CONFIG, {"trains": trains})
        loop = make_loop(config)
        before = {key: value.clone() for key, value in loop.model.net.state_dict().items()}
        streams = make_streams(config, digits, None, None, rank=0, workers=1, scale=local())
        loop.run(host_batches(streams, 0, 6), log_steps=3, log=lambda entry: None, save_steps=100, save=lambda: None)
        return before, loop.model

    def test_statistics_alone(self, digits: Corpus) -> None:
        """Every parameter of the backbone is bit-equal, affine ones included; its running statistics are not."""
        before, model = self.run_steps("norm-statistics", digits)
        parameters = {name for name, _ in model.net.named_parameters()}
        after = model.net.state_dict()
        backbone = [key for key in after if key.startswith("backbone.")]
        assert all(torch.equal(after[key], before[key]) for key in backbone if key in parameters)
        moved = [key for key in backbone if key.endswith(("running_mean", "running_var"))]
        assert len(moved) > 30
        assert not any(torch.equal(after[key], before[key]) for key in moved)
        assert any(not torch.equal(after[key], before[key]) for key in after if key.startswith("projection."))

    def test_affine(self, digits: Corpus) -> None:
        before, model = self.run_steps("norm-affine", digits)
        norms = {name for name, module in model.net.backbone.named_modules() if isinstance(module, SplitBatchNorm)}
        changed = {name for name, p in model.net.backbone.named_parameters() if not torch.equal(p, before[f"backbone.{name}"])}
        assert changed
        assert {name.rpartition(".")[0] for name in changed} <= norms

    def test_all_is_the_default(self, digits: Corpus) -> None:
        before, model = self.run_steps("all", digits)
        assert not any(
            torch.equal(p, before[f"backbone.{name}"]) for name, p in model.net.backbone.named_parameters() if p.ndim == 4
        )


def test_a_restart_gives_the_same_weights_keys_and_queue(digits: Corpus, tmp_path: Path) -> None:
    def advance(loop: Loop, stop: int) -> None:
        streams = make_streams(CONFIG, digits, None, None, rank=0, workers=1, scale=local())
        loop.steps = stop
        batches = host_batches(streams, loop.state.step, stop)
        loop.run(batches, log_steps=2, log=lambda entry: None, save_steps=100, save=lambda: None)

    whole, first, second = make_loop(), make_loop(), make_loop()
    advance(whole, 4)
    advance(whole, 6)
    advance(first, 4)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    advance(second, 6)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key


def test_only_the_backbone_passes_on(digits: Corpus) -> None:
    """The head, the key encoder and the queue of the next phase are fresh; the key encoder is a copy of the query's."""
    first = MoCo(CONFIG).build()
    with torch.no_grad():
        for value in first.parameters():
            value.add_(0.5)
    weights = {key: value.clone() for key, value in first.net.state_dict().items()}
    second = MoCo(override(CONFIG, {"seed": 1})).build(weights)
    after = second.net.state_dict()
    assert all(torch.equal(after[key], weights[key]) for key in after if key.startswith("backbone."))
    assert not any(torch.equal(after[key], weights[key]) for key in after if key.startswith("projection."))
    assert all(torch.equal(a, b) for a, b in zip(second.net.parameters(), second.keys.parameters(), strict=True))


def _kept(rank: int, world: int, path: str) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    loop, kept = make_loop(workers=world, steps=4), []
    streams = make_streams(CONFIG, Corpus(path), None, None, rank=rank, workers=world, scale=local())

    def keep() -> None:
        kept.append({key: value.clone() for key, value in loop.model.used.state_dict().items()})

    loop.run(
        host_batches(streams, 0, 4), log_steps=4, log=lambda entry: None, save_steps=3, save=keep, snapshots=(2,), keep=keep
    )
    return {f"{number}.{key}": value for number, state in enumerate(kept) for key, value in state.items()}


def test_workers_agree_on_what_is_kept(digits: Corpus, tmp_path: Path) -> None:
    """A snapshot, a checkpoint and the end: the same running statistics on both workers, although each saw its own images."""
    parts = on_workers(2, _kept, (digits.path,), tmp_path)
    assert {key.partition(".")[0] for key in parts[0]} == {"0", "1", "2"}
    for key, value in parts[0].items():
        if "running" in key:
            assert torch.equal(parts[1][key], value), key
    some = next(key for key in parts[0] if key.startswith("0.") and key.endswith("running_mean"))
    assert not torch.equal(parts[0][some], parts[0]["2" + some[1:]])


class TestBadInput:
    def test_a_batch_that_the_groups_of_norms_do_not_divide(self) -> None:
        with pytest.raises(ConfigError, match="does not part into groups of batch_norm=6 images"):
            override(CONFIG, {"batch_norm": 6})

    def test_a_net_without_batch_norms(self) -> None:
        net = NetConfig(name="timm:vit_tiny_patch16_224")
        with pytest.raises(ConfigError, match="lets batch norms alone learn, and timm:vit_tiny_patch16_224 has none"):
            MoCo(override(CONFIG, {"net": net, "trains": "norm-statistics"})).build()

    def test_a_queue_that_does_not_hold_whole_steps(self) -> None:
        with pytest.raises(ConfigError, match="queue=40 does not hold whole steps of 16 keys"):
            override(CONFIG, {"queue": 40})
        with pytest.raises(ConfigError, match="whole steps of 32 keys"):
            override(CONFIG, {"symmetric": True})

    def test_workers_that_part_the_groups_of_norms(self) -> None:
        CONFIG.check_workers(2)
        CONFIG.check_workers(4)
        with pytest.raises(ResourceError, match="take 1 or 2 workers, or batch_norm=sync"):
            override(CONFIG, {"batch_norm": 8}).check_workers(4)
        CONFIG.check_workers(3)
        with pytest.raises(ResourceError, match="5 training workers are more than the 4 parts of the batch"):
            CONFIG.check_workers(5)

    def test_a_batch_of_one(self) -> None:
        with pytest.raises((ConfigError, ValidationError), match="two images"):
            override(CONFIG, {"batch": 1, "lanes": 1, "queue": 4})


def test_a_queue_larger_than_the_memory_is_refused() -> None:
    with pytest.raises(ResourceError, match=r"a queue of 1,099,511,627,776 keys: .* lower the size of the queue"):
        Queue(2**40, 128)
