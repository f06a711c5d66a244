"""Self-training from its command line: boxes, masks and classes by one job, restarts, and plain words for mistakes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ssl_ray.pipelines.label as label_job
import ssl_ray.pipelines.self_training as job
import ssl_ray.stages.report_self_training as report_module
from ssl_ray import load_model
from ssl_ray.artifacts import Checkpoint, Corpus, PseudoLabels, Selection
from ssl_ray.cli import run_job
from ssl_ray.config import override, parse_assignment
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.errors import ConfigError, HealthError, SourceError
from ssl_ray.health import HealthConfig, check_labels, of_kept
from ssl_ray.nets import build_scene_net
from ssl_ray.recipes.arms import TABLES, ArmConfig, InitConfig, SelfTrainingRecipe, table2, table3
from ssl_ray.recipes.self_training import RECIPES, recipe, tiny
from ssl_ray.recipes.self_training_paper import paper
from ssl_ray.scale import inline
from ssl_ray.selection import SelectionConfig
from ssl_ray.settings.pretraining import SimCLRConfig
from ssl_ray.settings.training import ScheduleConfig, TrainConfig
from ssl_ray.settings.views import Preprocess
from ssl_ray.stage import Run
from ssl_ray.stages.evaluate import EvaluateConfig, evaluate, pairs
from ssl_ray.stages.export import ExportConfig, export, file_name
from ssl_ray.stages.label import LabelConfig, label
from ssl_ray.tasks import boxes, masks
from tests.photos import write_coco


def call(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["job", *arguments, "--scale", "inline"])
        return run_job(job.main)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "root"
            assert call(name, "--root", str(made[name])) == 0
        return made[name]

    return make


BOTH = pytest.mark.parametrize("name", ["tiny", "tiny-segmentation"])


class TestArms:
    @BOTH
    def test_scores(self, finished: Callable[[str], Path], name: str) -> None:
        rows = json.loads((finished(name) / "scores.json").read_text())
        assert all(row.keys() == {"model", "seed", "split", "metric", "value", "n"} for row in rows)
        assert {row["model"] for row in rows} == {"random-S2", "random-S2-student", "pretrained++-S4-50%", "random-S1-joint"}
        assert {"map", "map50"} <= {row["metric"] for row in rows} or {"miou", "pixel_accuracy"} == {
            row["metric"] for row in rows
        }
        assert all(0 <= row["value"] <= 1 for row in rows)

    @BOTH
    def test_a_second_call_recomputes_nothing(
        self, finished: Callable[[str], Path], name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = finished(name)
        before = {path: path.stat().st_mtime_ns for path in root.rglob("_record.json")}
        assert call(name, "--root", str(root)) == 0
        assert {path: path.stat().st_mtime_ns for path in root.rglob("_record.json")} == before
        assert " starts" not in capsys.readouterr().out

    def test_arms_share_what_they_have_in_common(self, finished: Callable[[str], Path]) -> None:
        """One teacher for the arm with self-training and the one without; one classifier for both ImageNet inits."""
        root = finished("tiny")
        names = {str(path.parent.relative_to(root)) for path in root.rglob("_record.json")}
        assert {name for name in names if name.startswith("teachers/")} == {
            "teachers/random-S2",
            "teachers/pretrained++-S4-50%",
            "teachers/random-S1-joint",
        }
        assert {
            "inits/pretrained++/classifier",
            "inits/pretrained++/student",
            "labels/random-S2",
            "students/random-S2",
        } <= names

    def test_a_part_of_the_labels(self, finished: Callable[[str], Path]) -> None:
        root = finished("tiny")
        assert Checkpoint(str(root / "teachers/random-S2")).results["labels"] == 24
        assert Checkpoint(str(root / "teachers/pretrained++-S4-50%")).results["labels"] == 12

    def test_inits_give_backbones(self, finished: Callable[[str], Path]) -> None:
        """The detector begins where the classifier ended: its first step has moved it little."""
        root = finished("tiny")
        student = load_model(root / "inits/pretrained++/student").net.state_dict()
        run = Run(str(root.parent / "again"), inline(), echo=lambda line: None)
        arms = job.Arms(Run(str(root), inline(), echo=lambda line: None), tiny(), Corpus(str(root / "images")))
        config = arms.config(tiny().teacher, tiny().arms["pretrained++50%"], "x")
        slow = override(config, {"optim.lr": 1e-9, "ema": None, "schedule.length": 1})
        net = run("x", job.train, slow, images=arms.images, start=arms.start("pretrained++"))
        weights = load_model(net.path).net.state_dict()
        key = "maps.backbone.layers.0.weight"
        np.testing.assert_allclose(weights[key].numpy(), student["backbone.layers.0.weight"].numpy(), atol=1e-6)

    @BOTH
    def test_the_model_answers(self, finished: Callable[[str], Path], name: str, tmp_path: Path) -> None:
        model = load_model(finished(name) / "students/random-S2")
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 120, 3)).astype(np.uint8)).save(tmp_path / "x.png")
        [found] = model.predict(str(tmp_path / "x.png"))
        assert found.size == (120, 50)  # type: ignore[union-attr]
        if name == "tiny":
            assert isinstance(found, boxes.Boxes)
            assert (found.boxes >= 0).all()
            assert (found.boxes <= [120, 50, 120, 50]).all()
        else:
            assert isinstance(found, masks.Mask)
            assert found.classes.shape == (50, 120)
            assert found.classes.max() <= 10

    def test_labels_of_scales_put_together(self, finished: Callable[[str], Path], tmp_path: Path) -> None:
        root = finished("tiny-segmentation")
        run = Run(str(tmp_path), inline(), echo=lambda line: None)
        images, model = Corpus(str(root / "images")), Checkpoint(str(root / "teachers/random-S2"))
        made = run("labels", label, LabelConfig(scales=(0.5, 1.0, 1.5)), images=images, model=model)
        one = PseudoLabels(str(root / "labels/random-S2"))
        first, second = (masks.rows_of(part.read(part.files[0])) for part in (made, one))
        assert any(not np.array_equal(a.certainty, b.certainty) for a, b in zip(first, second, strict=True))  # type: ignore[arg-type]


@BOTH
def test_a_detector_labels_any_heap(
    finished: Callable[[str], Path], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the job that labels with any model; and its backbone can be probed."""
    own_images(tmp_path)
    teacher = finished(name) / "teachers/random-S2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["job", "--teacher", str(teacher), "--images", str(tmp_path / "heap"), "--root",
                                    str(tmp_path / "root"), "--scale", "inline", "--set", "health.max_class_share=1.0"])  # fmt: skip
        assert run_job(label_job.main) == 0
    out = capsys.readouterr().out
    assert "9 images labeled with" in out
    assert ("boxes" if name == "tiny" else "pixels") in out
    features = load_model(teacher).features(np.zeros((2, 96, 96, 3), np.uint8))  # type: ignore[union-attr]
    assert features.shape == (2, 64)


class TestExport:
    def test_boxes_open_in_other_tools(self, finished: Callable[[str], Path], tmp_path: Path) -> None:
        from pycocotools.coco import COCO

        root = finished("tiny")
        run = Run(str(tmp_path), inline(), echo=lambda line: None)
        images, labels = Corpus(str(root / "images")), PseudoLabels(str(root / "labels/random-S2"))
        made = run("coco", export, ExportConfig(min_score=0.012), images=images, labels=labels)
        opened = COCO(str(Path(made.path) / "instances.json"))
        assert len(opened.imgs) == labels.results["images"]
        total = sum(int((item.scores >= 0.012).sum()) for file in labels.files for item in boxes.rows_of(labels.read(file)))
        assert len(opened.anns) == total
        assert [category["name"] for category in opened.cats.values()] == images.classes

    def test_voc_folders(self, finished: Callable[[str], Path]) -> None:
        root = finished("tiny-segmentation")
        chosen = Selection(str(root / "chosen/random-S2"))
        assert chosen.results["task"] == "segmentation"
        files = sorted((root / "export" / "SegmentationClass").glob("*.png"))
        assert len(files) == 64
        assert (root / "export" / "classes.txt").read_text().split()[0] == "background"

    def test_names_in_the_export_do_not_collide(self) -> None:
        seen: set[str] = set()
        ids = ["train/a.png", "unlabeled/a.png", "train/a.jpg", "train/a_jpg.png", "x/train/a_jpg", "y/x/train/a_jpg.png"]
        names = [file_name(image_id, "voc", seen) for image_id in ids]
        assert names[:3] == ["a.png", "unlabeled/a.png", "train/a.jpg"]
        assert len({name.rpartition(".")[0] for name in names}) == len(ids)
        again = [file_name("train/a.png", "voc", seen) for _ in range(5)]  # whatever they are called, none is lost
        assert len(seen) == len(ids) + len(again)

    def test_classes_have_no_such_form(self, finished: Callable[[str], Path], tmp_path: Path) -> None:
        root = finished("tiny")
        run = Run(str(tmp_path), inline(), echo=lambda line: None)
        labels = PseudoLabels(str(root / "inits/pretrained++/labels"))
        with pytest.raises(ConfigError, match="no COCO or VOC form"):
            run("x", export, ExportConfig(), images=Corpus(str(root / "other")), labels=labels)


def test_classes_go_the_same_way(tmp_path: Path) -> None:
    """The job does not know which task it runs."""
    teacher = TrainConfig(batch=8, schedule=ScheduleConfig(length=3), net=override(tiny().net, {"stem_stride": 1}))
    chosen = SelfTrainingRecipe(
        images=ImagesConfig(labels=40, test_images=60, val_images=20),
        net=teacher.net,
        teacher=teacher,
        student=override(teacher, {"mix": "joint"}),
        selection=SelectionConfig(min_confidence=0.0, balance=False, allow_empty_classes=True),
        arms={"plain": ArmConfig(), "learned": ArmConfig(self_training=True)},
        health=HealthConfig(max_class_share=1.0),
    )
    report = job.self_training(Run(str(tmp_path), inline(), echo=lambda line: None), chosen)
    assert report.results["task"] == "classification"
    assert set(report.results["arms"]) == {"plain", "learned"}
    assert "top-1" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.slow
def test_other_ways_to_begin(tmp_path: Path) -> None:
    """A self-supervised init, on labels alone of other images; and a student that begins with its teacher's weights."""
    ssl = SimCLRConfig(preprocess=Preprocess(size=28), batch=8, schedule=ScheduleConfig(length=2, warmup=0))
    still = {"student.optim.lr": 1e-9, "student.ema": None, "student.schedule.length": 1}
    chosen = override(
        tiny(),
        {
            "other": ImagesConfig(labeled="sample:mnist5k", test_images=4900, labels=None),
            "inits": {"random": InitConfig(), "self-supervised": InitConfig(pretrain=ssl)},
            "arms": {"both": ArmConfig(init="self-supervised", self_training=True, student_start="teacher")},
            "teacher.ema": None,
            "export": None,
            **still,
        },
    )
    report = job.self_training(Run(str(tmp_path), inline(), echo=lambda line: None), chosen)
    assert set(report.results["arms"]) == {"both"}
    assert Corpus(str(tmp_path / "other")).num_images("unlabeled") == 0
    encoder = load_model(tmp_path / "inits/self-supervised").net.state_dict()
    teacher = load_model(tmp_path / "teachers/self-supervised-own").net.state_dict()
    student = load_model(tmp_path / "students/self-supervised-own-from-teacher").net.state_dict()
    weights = [name for name in student if name.endswith("weight") and "norm" not in name]
    assert len(weights) > 5
    for name in weights:
        np.testing.assert_allclose(student[name].numpy(), teacher[name].numpy(), atol=1e-6)
    begun = {name.removeprefix("maps."): value for name, value in teacher.items() if name.startswith("maps.backbone")}
    assert begun.keys() <= encoder.keys()


def test_the_report_says_what_the_labels_are_worth(finished: Callable[[str], Path]) -> None:
    root = finished("tiny")
    chosen = Selection(str(root / "chosen/random-S2"))  # of a threshold of zero
    cell = report_module.Cell("x", "x", None, None, selection=chosen)  # type: ignore[arg-type]
    rows = [{"threshold": t, "precision": t, "recall": 0.25, "n": 2} for t in (0.1, 0.5)]
    assert report_module.worth(cell, {"x": rows}) == "; over 0.10 10% of them are right, and 25% of what is there is found"
    assert report_module.worth(cell, {"x": [{**rows[0], "precision": None}]}) == report_module.worth(cell, {}) == ""
    page = (root / "report" / "report.html").read_text()
    assert "From left to right: true, " in page


def test_a_recipe_for_ones_own_images_asks_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("photos", "--root", str(tmp_path)) == 2
    assert "the recipe photos is for images of your own; give --labeled" in capsys.readouterr().err


class TestHealth:
    def test_boxes_that_no_student_sees_stop_nothing(self, finished: Callable[[str], Path]) -> None:
        """And those that it does see are judged."""
        labels = PseudoLabels(str(finished("tiny") / "labels/random-S2"))
        found, classes = labels.results["health"], labels.results["classes"]
        flood = {**found, "largest_share": 0.985, "largest_class": classes[0]}
        with pytest.raises(HealthError, match=r"98\.5%"):
            check_labels(flood, HealthConfig())
        check_labels(of_kept(flood, classes, [15] * len(classes), None), HealthConfig())
        with pytest.raises(HealthError, match=f"100.0% of the boxes were given to the one class '{classes[1]}'"):
            check_labels(of_kept(found, classes, [0, 9] + [0] * (len(classes) - 2), None), HealthConfig())

    def test_the_ground_of_masks_is_left_out(self, finished: Callable[[str], Path]) -> None:
        labels = PseudoLabels(str(finished("tiny-segmentation") / "labels/random-S2"))
        classes = labels.results["classes"]
        kept = of_kept(labels.results["health"], classes, [10**6] + [5] * (len(classes) - 1), None)
        assert kept["largest_share"] == pytest.approx(1 / (len(classes) - 1))


class TestQuality:
    """Precision and recall of pseudo-labels by threshold, as docs have them, of answers that are known."""

    def curve(
        self, monkeypatch: pytest.MonkeyPatch, finished: Path, task: str, known: list[tuple[Any, Any]]
    ) -> dict[float, Any]:
        monkeypatch.setattr(report_module, "pairs", lambda *arguments: iter(known))
        labels = PseudoLabels(str(finished / "labels/random-S2"))
        cell = report_module.Cell("x", "x", None, None, labels=labels)  # type: ignore[arg-type]
        rows = report_module.quality(cell, Corpus(str(finished / "images")), task)
        return {row["threshold"]: row for row in rows}

    def test_boxes(self, monkeypatch: pytest.MonkeyPatch, finished: Callable[[str], Path]) -> None:
        corners = np.array([[0, 0, 10, 10], [30, 30, 40, 40], [50, 50, 60, 60]], np.float32)
        true = boxes.Boxes((90, 90), corners, np.zeros(3, np.int32), np.ones(3, np.float32), ignore=np.array([False, False, True]),
                           crowd=np.zeros(3, bool))  # fmt: skip
        said = boxes.Boxes((90, 90), corners[[0, 2, 1]] + np.array([[0], [0], [60]], np.float32), np.zeros(3, np.int32),
                           np.array([0.9, 0.8, 0.4], np.float32))  # fmt: skip
        curve = self.curve(monkeypatch, finished("tiny"), "detection", [(said, true)])
        assert curve[0.3] == {
            "threshold": 0.3,
            "precision": 0.5,
            "recall": 0.5,
            "n": 2,
        }  # what finds the difficult one is no error
        assert curve[0.5] == {"threshold": 0.5, "precision": 1.0, "recall": 0.5, "n": 1}
        assert curve[0.95] == {"threshold": 0.95, "precision": None, "recall": 0.0, "n": 0}

    def test_pixels(self, monkeypatch: pytest.MonkeyPatch, finished: Callable[[str], Path]) -> None:
        true = masks.Mask(np.array([[0, 1, 1, 2, 255]], np.uint8))
        said = masks.Mask(np.array([[0, 1, 2, 2, 1]], np.uint8), np.array([[255, 255, 128, 200, 255]], np.uint8))
        curve = self.curve(monkeypatch, finished("tiny-segmentation"), "segmentation", [(said, true)])
        assert curve[0.3]["precision"] == pytest.approx(2 / 3)
        assert curve[0.3]["recall"] == pytest.approx(2 / 3)
        assert curve[0.6]["precision"] == 1.0  # the wrong one is unsure
        assert curve[0.9] == {"threshold": 0.9, "precision": 1.0, "recall": pytest.approx(1 / 3), "n": 1}


def own_images(tmp_path: Path) -> list[str]:
    """COCO images of one's own, and a heap without labels."""
    write_coco(tmp_path)
    return ["--labeled", f"coco:{tmp_path}/train.json@{tmp_path}/photos", "--unlabeled", str(tmp_path / "heap")]


@pytest.mark.slow
def test_a_heap_beside_a_sample_with_hidden_labels(tmp_path: Path) -> None:
    """The precision of pseudo-labels is measured where the truth is known, and only there."""
    own_images(tmp_path)
    root = tmp_path / "root"
    assert call("tiny", "--unlabeled", str(tmp_path / "heap"), "--root", str(root)) == 0
    images = Corpus(str(root / "images"))
    assert len({shard.shard for shard in images.shards("unlabeled")}) == 2
    assert len(images.truth.names(".parquet")) == 1
    labels = PseudoLabels(str(root / "labels/random-S2"))
    known = list(pairs("detection", images.truth, labels.labels, labels.files))
    assert len(known) == images.num_images("unlabeled") - 9


def test_images_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Arms whose init learns from the sample's single things are left out."""
    sources, root = own_images(tmp_path), tmp_path / "root"
    assert call("tiny", *sources, "--root", str(root)) == 0
    out = capsys.readouterr().out
    assert "16 labeled, 9 unlabeled, 4 test images of 2 classes" in out
    assert "pretrained" not in out
    assert Checkpoint(str(root / "students/random-S2")).model["classes"] == ["nut", "bolt"]


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--set", "arms.x.init=nowhere"], "begins with 'nowhere'; the inits are random, pretrained++"),
            (["--set", "arms.x.augment=S9"], "augment"),
            (["--set", "images.task=segmentation"], "set one task"),
            (["--set", "teacher.preprocess.crop=whole"], "crop=fit"),
            (["--set", "teacher.head.pyramid.strides=[8,16]"], "no map of stride 16, but of 2, 4, 8"),
            (["--labeled", "sample:mnist5k"], "has no boxes or masks"),
            (["--labeled", "nowhere/"], "holds no boxes or masks"),
            (["--test", "coco:a@b"], "--test needs --labeled"),
            (["--set", "labeler.top_k=3"], "labeler.top_k belongs to classes"),
            (["--set", "selection.balance=true"], "set both to false"),
            (["--set", "selection.min_confidence=0.99"], "lower selection.min_confidence"),
            (["--set", "inits.random.imagenet=true", "--set", "inits.random.weights=x"], "begins in one way"),
            (["--set", 'longer={"S7": 2}'], "longer knows"),
        ],
    )
    def test_one_line_and_exit_code_2(
        self, arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert call("tiny", "--root", str(tmp_path / "root"), *arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert words in error

    def test_labels_in_other_categories_than_the_teacher(self, finished: Callable[[str], Path], tmp_path: Path) -> None:
        """A category in the labels and not in the teacher."""
        own_images(tmp_path)
        run = Run(str(tmp_path / "root"), inline(), echo=lambda line: None)
        images = run("images", job.ingest, ImagesConfig(task="detection", labeled=f"coco:{tmp_path}/train.json@{tmp_path}/photos",
                                                        unlabeled=str(tmp_path / "heap")))  # fmt: skip
        teacher = Checkpoint(str(finished("tiny") / "teachers/random-S2"))
        with pytest.raises(SourceError, match="trained on these classes"):
            run("labels", label, LabelConfig(), images=images, model=teacher)

    def test_a_model_of_another_task(self, finished: Callable[[str], Path], tmp_path: Path) -> None:
        run = Run(str(tmp_path), inline(), echo=lambda line: None)
        images, model = (
            Corpus(str(finished("tiny") / "images")),
            Checkpoint(str(finished("tiny-segmentation") / "teachers/random-S2")),
        )
        with pytest.raises(ConfigError, match=r"is for segmentation, and the images for detection"):
            run("scores", evaluate, EvaluateConfig(model="x"), images=images, model=model)

    def test_broken_images_of_the_heap_are_set_aside(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        sources, root = own_images(tmp_path), tmp_path / "root"
        (tmp_path / "heap" / "0.jpg").write_bytes(b"no image at all")
        assert call("tiny", *sources, "--root", str(root), "--set", "labeler.quarantine_budget=0.2") == 0
        assert "1 in quarantine" in capsys.readouterr().out


class TestRecipes:
    @pytest.mark.parametrize("name", RECIPES)
    def test_every_recipe_holds_together(self, name: str) -> None:
        chosen = recipe(name)
        assert all(arm.init in chosen.inits for arm in chosen.arms.values())
        assert chosen.student.mix == "joint"

    @pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("paper")])
    def test_nets_of_recipes_learn(self, name: str) -> None:
        """The net that the job would build takes images of the recipe's size and has a loss."""
        chosen = recipe(name)
        for part in (chosen.teacher, chosen.student):
            net = build_scene_net(chosen.net, part.head, 3, load=False)  # type: ignore[union-attr]
            x = torch.randn(2, 3, part.preprocess.size, part.preprocess.size)
            target: Any = [{"boxes": torch.tensor([[4.0, 4, 40, 44]]), "labels": torch.tensor([1])}] * 2
            if part.task == "segmentation":
                target = torch.ones(2, *x.shape[2:], dtype=torch.uint8)
            parts, counted = net.losses(net(x), x, target)
            assert int(counted) > 0
            assert all(bool(torch.isfinite(value)) for value in parts.values())

    @pytest.mark.parametrize("name", RECIPES)
    def test_other_images_need_no_heap_without_a_student(self, name: str, tmp_path: Path) -> None:
        """ImageNet's labels are enough for joint training: there is nothing beside them."""
        chosen = recipe(name)
        if chosen.other is None:
            pytest.skip("no other images")
        seen: list[ImagesConfig] = []

        def run(stage: str, function: object, config: ImagesConfig, **inputs: object) -> None:
            seen.append(config)

        job.Arms(run, chosen, None)  # type: ignore[arg-type]
        inits = [chosen.inits[arm.init] for arm in chosen.arms.values()]
        if any(init.learns for init in inits) or any(arm.joint for arm in chosen.arms.values()):
            assert [config.needs_unlabeled for config in seen] == [any(init.student is not None for init in inits)]

    def test_another_backbone_as_docs_have_it(self) -> None:
        text = (Path(__file__).parents[2] / "docs" / "self_training.md").read_text()
        settings = dict(
            re.findall(r"--set '?((?:net|teacher)\.[\w.]+)=([^ ']+)", text.split("Another backbone")[1].split("| source")[0])
        )
        assert "net.stochastic_depth" in settings
        settings["net.weights"] = "none"  # the file is the user's
        chosen = override(recipe("photos"), dict(parse_assignment(f"{key}={value}") for key, value in settings.items()))
        net = build_scene_net(chosen.net, chosen.teacher.head, 3, load=False)  # type: ignore[union-attr]
        assert chosen.net.name == "torchvision:resnet50"
        assert len(net.maps.channels) == 3

    def test_paper_values(self) -> None:
        """Of the released code; what is recalled only is marked in the recipe."""
        found = paper("table2").teacher
        assert found.task == "detection"
        loss = found.head.loss  # type: ignore[union-attr]
        assert (loss.alpha, loss.gamma, loss.delta, loss.box_weight, loss.match, loss.unmatch) == (
            0.25,
            1.5,
            0.1,
            50.0,
            0.5,
            0.5,
        )
        assert found.head.pyramid.strides == (8, 16, 32)  # type: ignore[union-attr]
        assert found.head.levels == 5  # type: ignore[union-attr]
        assert found.preprocess.size == 640
        seg = recipe("paper-table6").teacher
        assert (seg.optim.lr, seg.optim.weight_decay, seg.optim.clip_norm) == (0.08, 1e-5, 10.0)
        assert seg.head.pyramid.repeats == 7  # type: ignore[union-attr]

    def test_tables(self) -> None:
        assert len(table2()) == 12
        assert {arm.augment for arm in table2().values()} == {"S1", "S2", "S3", "S4"}
        assert len(table3()) == 18
        assert {arm.share for arm in table3().values()} == {0.2, 0.5, 1.0}

    @pytest.mark.parametrize("kind", ["miniature", "segmentation"])
    def test_cells_of_several_tables_are_one(self, kind: str) -> None:
        """The tables of a task stand under one root: a folder's name has to say all that its training depends on."""
        seen: dict[str, Any] = {}
        for table in TABLES:
            chosen = recipe(f"{kind}-{table}")
            parts = job.Arms(Run("unused", inline(), echo=lambda line: None, plan=True), chosen, None)  # type: ignore[arg-type]
            for arm in chosen.arms.values():
                config = parts.config(chosen.teacher, arm, job.place(arm))
                assert seen.setdefault(job.place(arm), config) == config
        assert len(seen) > 10

    def test_shares_that_are_near_have_names_of_their_own(self) -> None:
        assert len({job.place(ArmConfig(share=share)) for share in (0.01, 0.012, 0.12, 0.125)}) == 4

    def test_an_init_in_one_way(self) -> None:
        with pytest.raises(ValueError, match="student learns from its classifier"):
            InitConfig(student=TrainConfig(mix="joint"))
