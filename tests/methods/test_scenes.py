"""A step of a detector or segmenter: the joint loss, one worker against two, a restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssl_ray import load_model
from ssl_ray.artifacts import Corpus, PseudoLabels, Selection
from ssl_ray.config import override
from ssl_ray.data.loader import assemble, host_batches
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.errors import ConfigError
from ssl_ray.losses.self_training import RunningMeans, normalised
from ssl_ray.methods.scenes import SceneTraining
from ssl_ray.nets.batchnorm import is_batch_norm
from ssl_ray.scale import inline, local
from ssl_ray.selection import SelectionConfig
from ssl_ray.settings.nets import DetectorConfig, NetConfig, PyramidConfig, SegmenterConfig
from ssl_ray.settings.training import BesideConfig, DetectionConfig, SegmentationConfig
from ssl_ray.settings.views import Preprocess, ViewConfig
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.label import LabelConfig, label
from ssl_ray.stages.select import select
from ssl_ray.stages.train import train
from ssl_ray.train.loop import Loop, Step, parallel, to_device
from ssl_ray.train.streams import make_streams
from ssl_ray.views.policy import normalize
from tests.workers import on_workers

CPU = torch.device("cpu")
COMMON: dict[str, Any] = {
    "net": NetConfig(name="small_resnet", width=16, stem_stride=2, stochastic_depth=0.2),
    "preprocess": Preprocess(size=64, crop="fit", interpolation="bilinear"),
    "augment.name": "S4",
    "batch": 4,
    "lanes": 2,
    "schedule.length": 4,
    "optim.lr": 0.01,
    "precision": "float32",
}
DETECTION = override(
    DetectionConfig(preprocess=Preprocess(crop="fit")),
    {
        **COMMON,
        "head": DetectorConfig(pyramid=PyramidConfig(strides=(4, 8), width=16, norm="batch"), levels=3, convs=1, score=0.001),
    },
)
SEGMENTATION = override(
    SegmentationConfig(preprocess=Preprocess(crop="fit")),
    {**COMMON, "head": SegmenterConfig(pyramid=PyramidConfig(strides=(4, 8), width=16, norm="batch"), convs=1)},
)
BESIDE = BesideConfig(batch=8, preprocess=Preprocess(size=28), view=ViewConfig(crop="pad", pad=2, flip=True))
CONFIGS = {"detection": DETECTION, "segmentation": SEGMENTATION}
FCOS = {"head.kind": "fcos", "head.pyramid.width": 32}
"""Its loss counts places, and norms its head in 32 groups."""

Parts = tuple[Corpus, PseudoLabels, Selection]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Parts]:
    """A few scenes, labels of a net that knows nothing, and a selection, by task."""
    made: dict[str, Parts] = {}

    def make(task: str) -> Parts:
        if task not in made:
            run = Run(str(tmp_path_factory.mktemp(task)), inline(), echo=lambda line: None)
            images = run("images", ingest, ImagesConfig(task=task, labeled="sample:scenes-few", labels=24, shard_rows=10))  # type: ignore[arg-type]
            teacher = run("teacher", train, override(CONFIGS[task], {"schedule.length": 1}), images=images)
            labels = run("labels", label, LabelConfig(precision="float32"), images=images, model=teacher)
            config = SelectionConfig(min_confidence=0.0, balance=False, allow_empty_classes=True)
            made[task] = (images, labels, run("chosen", select, config, labels=labels))
        return made[task]

    return make


def first_batch(config: Any, parts: Parts, step: int = 0, other: Corpus | None = None) -> Any:
    streams = make_streams(config, *parts, rank=0, workers=1, scale=local(), other=other)
    return to_device(assemble(streams, step), CPU)


def joint(task: str, **changes: object) -> Any:
    return override(CONFIGS[task], {"mix": "joint", "ratio": 2, **changes})


class TestJointLoss:
    def test_formula(self) -> None:
        labeled, pseudo = torch.tensor(3.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
        means = torch.tensor([2.0, 0.25], dtype=torch.float64)
        found = normalised(labeled, pseudo, means, 1.5)
        assert found.item() == pytest.approx((3.0 + 1.5 * (2.0 / 0.25) * 0.5) / 2.5)
        found.backward()
        assert labeled.grad is not None
        assert pseudo.grad is not None
        assert labeled.grad.item() == pytest.approx(1 / 2.5)
        assert pseudo.grad.item() == pytest.approx(1.5 * 8 / 2.5)  # the ratio is a constant

    def test_running_means(self) -> None:
        """A plain mean at first, then exponential."""
        running = RunningMeans(0.75)
        values = [(4.0, 1.0), (2.0, 3.0), (6.0, 2.0), (0.0, 0.0), (8.0, 4.0)]
        expected = np.zeros(2)
        for step, pair in enumerate(values):
            weight = min(0.75, 1 - 1 / (step + 1))
            expected = weight * expected + (1 - weight) * np.array(pair)
            found = running.update(torch.tensor(pair[0]), torch.tensor(pair[1]))
            np.testing.assert_allclose(found.numpy(), expected)
        assert expected[0] == pytest.approx(0.75 * 3.0 + 0.25 * 8.0)  # the mean of four, then the fifth with a quarter

    @pytest.mark.parametrize("task", CONFIGS)
    def test_streams_are_told_apart(self, task: str, scenes: Callable[[str], Parts]) -> None:
        """The joint loss is the formula on the losses that each stream has alone, and both averages are logged."""
        config, parts = joint(task, alpha=0.5), scenes(task)
        method = SceneTraining(config, len(parts[0].classes))
        model = method.build()
        model.eval()  # so that the streams can be looked at one by one
        batch = first_batch(config, parts)
        total, metrics = method.loss(model, batch, 0)
        assert len(batch) == 12
        labeled, pseudo = metrics["loss_labeled"], metrics["loss_pseudo"]
        assert metrics["mean_loss_labeled"].item() == pytest.approx(labeled.item())
        assert metrics["mean_loss_pseudo"].item() == pytest.approx(pseudo.item())
        assert total.item() == pytest.approx(labeled.item() * (1 + 0.5) / 1.5, rel=1e-5)  # at first the ratio makes them equal
        alone = SceneTraining(override(config, {"mix": "labeled"}), len(parts[0].classes))
        only = first_batch(alone.config, parts)
        found, _ = alone.loss(model, only, 0)
        assert found.item() == pytest.approx(labeled.item(), rel=1e-4)

    @pytest.mark.parametrize("task", CONFIGS)
    def test_parts_are_reported(self, task: str, scenes: Callable[[str], Parts]) -> None:
        config, parts = CONFIGS[task], scenes(task)
        method = SceneTraining(config, len(parts[0].classes))
        model, batch = method.build().eval(), first_batch(config, parts)
        total, metrics = method.loss(model, batch, 0)
        assert metrics["loss_labeled"].item() == pytest.approx(total.item())
        if task == "detection":
            assert (metrics["classes_labeled"] + metrics["corners_labeled"]).item() == pytest.approx(total.item(), rel=1e-5)
            return
        mask = batch.labeled["mask"].long()
        assert bool((mask == 255).any())
        logits = model.net(normalize(batch.images, config.preprocess))
        assert total.item() == pytest.approx(F.cross_entropy(logits, mask, ignore_index=255).item(), rel=1e-5)


def _steps(
    rank: int, world: int, task: str, changes: dict[str, object], paths: tuple[str, str, str], steps: int, beside: str
) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    config = joint(task, beside=BESIDE, **changes)
    parts = Corpus(paths[0]), PseudoLabels(paths[1]), Selection(paths[2])
    other = Corpus(beside)
    loop = make_loop(config, len(parts[0].classes), world, steps, len(other.classes))
    loop.model.double()  # so that what differs is the algorithm, not the order of float32 sums
    loop.model.net.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    step_module = Step(loop.method, loop.model)
    module = parallel(step_module) if world > 1 else step_module
    loop.model.net.backbone.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    streams = make_streams(config, *parts, rank=rank, workers=world, scale=local(), other=other)
    loop.method.set_training(loop.model)
    found: dict[str, torch.Tensor] = {}
    for step in range(steps):
        batch = to_device(assemble(streams, step), CPU)
        loss, metrics = module(batch, step)
        loop.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loop.optimizer.step()
        loop.method.after_step(loop.model, step)
        found[f"mean_{step}"] = torch.stack([metrics["mean_loss_labeled"], metrics["mean_loss_pseudo"]])
    found |= {f"grad/{name}": p.grad for name, p in loop.model.net.named_parameters() if p.grad is not None}
    return found | {f"state/{name}": value for name, value in loop.model.state_dict().items()}


def make_loop(config: Any, classes: int, workers: int = 1, steps: int = 4, beside: int = 0) -> Loop:
    return Loop(SceneTraining(config, classes, beside), None, steps=steps, steps_per_epoch=6.0, device=CPU, workers=workers)


@pytest.mark.parametrize(
    ("task", "changes", "workers"),
    [("detection", {"lanes": 4}, 3), ("detection", FCOS, 2), ("segmentation", {"lanes": 4}, 3)],
    ids=["retinanet", "fcos", "masks"],
)
def test_several_workers_equal_one(
    task: str, changes: dict[str, object], workers: int, scenes: Callable[[str], Parts], digits: Corpus, tmp_path: Path
) -> None:
    """Losses, gradients, averages and weights, with views, noise and global batch norm; images with unequally many boxes; classes
    beside them."""
    paths = tuple(part.path for part in scenes(task))
    one = _steps(0, 1, task, changes, paths, 2, digits.path)  # type: ignore[arg-type]
    for part in on_workers(workers, _steps, (task, changes, paths, 2, digits.path), tmp_path):
        assert part.keys() == one.keys()
        for name, value in one.items():
            tolerance = 1e-5 if name.endswith("num_batches_tracked") else 1e-6
            assert torch.allclose(part[name].double(), value.double(), rtol=tolerance, atol=1e-7), name


@pytest.mark.parametrize("task", CONFIGS)
def test_a_restart_goes_on_bit_by_bit(task: str, scenes: Callable[[str], Parts]) -> None:
    parts = scenes(task)
    config = joint(task)

    def run(loop: Loop, until: int) -> Loop:
        streams = make_streams(config, *parts, rank=0, workers=1, scale=local())
        steps, loop.steps = loop.steps, until
        loop.run(
            host_batches(streams, loop.state.step, until),
            log_steps=1,
            log=lambda entry: None,
            save_steps=100,
            save=lambda: None,
        )
        loop.steps = steps
        return loop

    whole = run(make_loop(config, len(parts[0].classes)), 4)
    half = run(make_loop(config, len(parts[0].classes)), 2)
    again = make_loop(config, len(parts[0].classes))
    again.load_state_dict(half.state_dict())
    run(again, 4)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


class TestClassesBeside:
    def test_the_losses_are_added(self, scenes: Callable[[str], Parts], digits: Corpus) -> None:
        parts, config = scenes("detection"), override(DETECTION, {"beside": override(BESIDE, {"weight": 0.5})})
        method = SceneTraining(config, 10, 10)
        model = method.build()
        batch = first_batch(config, parts, other=digits)
        assert batch.beside.images.shape == (8, 3, 28, 28)
        assert len(batch) == 4
        total, metrics = method.loss(model, batch, 0)
        expected = metrics["loss_labeled"] + 0.5 * metrics["loss_beside"]
        assert total.item() == pytest.approx(expected.item(), rel=1e-5)
        total.backward()
        assert model.net.beside.weight.grad is not None

    @pytest.mark.parametrize("momentum", [0.1, None])
    def test_statistics_are_those_of_scenes(
        self, momentum: float | None, scenes: Callable[[str], Parts], digits: Corpus
    ) -> None:
        """As without the images beside; but for norms that no scene passes."""
        parts = scenes("detection")
        found = []
        for beside, other in ((None, None), (BESIDE, digits)):
            method = SceneTraining(override(DETECTION, {"beside": beside}), 10, 10)
            model = method.build()
            norms = {name: module for name, module in model.net.backbone.named_modules() if is_batch_norm(module)}
            for norm in norms.values():
                norm.momentum = momentum  # type: ignore[assignment]
            method.set_training(model)
            batch = first_batch(method.config, parts, other=other)
            for step in range(2):
                method.loss(model, batch, step)
            found.append({f"{name}.{key}": value for name, module in norms.items() for key, value in module.named_buffers()})
            assert all(norm.momentum == momentum for norm in norms.values())
        assert len(found[0]) > 10
        for name, value in found[0].items():
            assert torch.equal(found[1][name], value), name

    def test_the_classifier_is_not_kept(self, scenes: Callable[[str], Parts], digits: Corpus, tmp_path: Path) -> None:
        run = Run(str(tmp_path), inline(), echo=lambda line: None)
        config = override(DETECTION, {"beside": BESIDE, "schedule.length": 2})
        made = run("joint", train, config, images=scenes("detection")[0], other=digits)
        assert not [name for name in load_model(made.path).net.state_dict() if name.startswith("beside")]
        assert made.results["last"]["loss_beside"] > 0

    def test_settings_and_images_come_together(self, scenes: Callable[[str], Parts], digits: Corpus, tmp_path: Path) -> None:
        run = Run(str(tmp_path), inline(), echo=lambda line: None)
        with pytest.raises(ConfigError, match="give both, or none"):
            run("x", train, DETECTION, images=scenes("detection")[0], other=digits)
        with pytest.raises(ConfigError, match="none or pad"):
            override(BESIDE, {"view.crop": "resized"})
        with pytest.raises(ConfigError, match="does not divide into 2 lanes"):
            override(DETECTION, {"beside": override(BESIDE, {"batch": 7})})


class TestSettings:
    def test_views_that_lose_places_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="crop=fit"):
            override(DETECTION, {"preprocess.crop": "whole"})

    def test_images_of_another_task_are_refused(self, scenes: Callable[[str], Parts], tmp_path: Path) -> None:
        run = Run(str(tmp_path), inline(), echo=lambda line: None)
        with pytest.raises(ConfigError, match=r"set images\.task=segmentation"):
            run("teacher", train, SEGMENTATION, images=scenes("detection")[0])

    def test_boxes_are_not_copied_by_class(self, scenes: Callable[[str], Parts], tmp_path: Path) -> None:
        run = Run(str(tmp_path), inline(), echo=lambda line: None)
        with pytest.raises(ConfigError, match="set both to false"):
            run("chosen", select, SelectionConfig(), labels=scenes("detection")[1])


def test_images_without_a_sure_box_may_be_left_out(scenes: Callable[[str], Parts], tmp_path: Path) -> None:
    images, labels, _ = scenes("detection")
    run = Run(str(tmp_path), inline(), echo=lambda line: None)
    scores = np.sort(np.array(labels.table(["confidence"])["confidence"]))
    config = SelectionConfig(min_confidence=float(scores[len(scores) // 2]), bins=1_000_000, balance=False,
                             allow_empty_classes=True, keep_empty=False)  # fmt: skip
    chosen = run("chosen", select, config, labels=labels)
    student = joint("detection")
    [_, stream] = make_streams(student, images, labels, chosen, rank=0, workers=1, scale=local())
    assert 0 < len(stream.config.entries) < len(scores)
    for step in range(4):
        _, found = stream.batch(step)
        assert set(found) == {"boxes", "labels", "counts"}
