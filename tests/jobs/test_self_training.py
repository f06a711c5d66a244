"""Self-training from its command line: boxes, masks and classes by one job, restarts, and plain words for mistakes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jobs.label as label_job
import jobs.self_training as job
from ssl_ray import load_model
from ssl_ray.artifacts import Checkpoint, Corpus, PseudoLabels, Selection
from ssl_ray.cli import run_job
from ssl_ray.config import override
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.errors import ConfigError, SourceError
from ssl_ray.health import HealthConfig
from ssl_ray.methods.method import ScheduleConfig
from ssl_ray.methods.self_training import TrainConfig
from ssl_ray.recipes.arms import TABLES, ArmConfig, InitConfig, SelfTrainingRecipe, table2, table3
from ssl_ray.recipes.self_training import RECIPES, paper, recipe, tiny
from ssl_ray.scale import inline
from ssl_ray.selection import SelectionConfig
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


def own_images(tmp_path: Path) -> list[str]:
    """COCO images of one's own, and a heap without labels."""
    write_coco(tmp_path)
    return ["--labeled", f"coco:{tmp_path}/train.json@{tmp_path}/photos", "--unlabeled", str(tmp_path / "heap")]


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
