"""Knowledge transfer from its command line: every arm, what it shares, restarts, and plain words for mistakes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ssl_ray.pipelines.hpt as hpt_job
import ssl_ray.pipelines.knowledge_transfer as job
from ssl_ray import load_model
from ssl_ray.artifacts import Checkpoint, Corpus, Features, PseudoLabels
from ssl_ray.cli import run_job
from ssl_ray.clustering import nearest
from ssl_ray.config import override
from ssl_ray.data.points import transformed
from ssl_ray.errors import ConfigError, SourceError
from ssl_ray.label_files import list_label_files
from ssl_ray.recipes.hpt import tiny as hpt_tiny
from ssl_ray.recipes.knowledge_transfer import HOG, RECIPES, ArmConfig, paper, recipe, tiny
from ssl_ray.scale import inline
from ssl_ray.stage import Run
from ssl_ray.stages import cluster as cluster_stage
from ssl_ray.stages.label import label
from ssl_ray.stages.report_transfer import Arm, chosen
from ssl_ray.stages.train import train


def call(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["job", *arguments, "--scale", "inline"])
        return run_job(job.main)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("transfer") / "root"
    assert call("tiny", "--root", str(root)) == 0
    return root


class TestArms:
    def test_scores(self, finished: Path) -> None:
        rows = json.loads((finished / "scores.json").read_text())
        arms = {"jigsaw", "cc+vgg-jigsaw++", "crossed", "cc+hog", "random"}
        columns = {"conv1", "conv2", "conv3", "conv4", "conv5", "fresh above 2", "fine-tuned"}
        assert {row["model"] for row in rows} == {f"{arm}, {column}" for arm in arms for column in columns}
        assert {row["split"] for row in rows} == {"val", "test"}
        assert all(row.keys() == {"model", "seed", "split", "metric", "value", "n"} for row in rows)
        assert all(0 <= row["value"] <= 1 for row in rows)

    def test_a_second_call_recomputes_nothing(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = {path: path.stat().st_mtime_ns for path in finished.rglob("_record.json")}
        assert call("tiny", "--root", str(finished)) == 0
        assert {path: path.stat().st_mtime_ns for path in finished.rglob("_record.json")} == before
        assert " starts" not in capsys.readouterr().out

    def test_another_arm_leaves_the_others_alone(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        more = [
            "--set",
            "arms.more.teacher=deep",
            "--set",
            "arms.more.clusters=7",
            "--set",
            "probe=null",
            "--set",
            "fresh=null",
        ]
        assert call("tiny", "--root", str(finished), *more) == 0
        begun = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("> ")]
        assert [name for name in begun if name != "report"] == [
            "clusters/deep-7-on-images", "labels/deep-7-on-images-for-images", "chosen/deep-7-on-images-for-images",
            "students/more", "tuned/more/finetuned", "scores/more/finetuned"]  # fmt: skip

    def test_labels_are_the_nearest_centroids(self, finished: Path) -> None:
        features = Features(str(finished / "features/deep-on-images"))
        images = Corpus(str(finished / "images"))
        clusters = load_model(finished / "clusters/deep-12-on-images").clusters
        assert clusters is not None
        vectors, shard, row = features.table(images.shards("unlabeled"))
        todo = [
            ("mean", clusters.mean.numpy()),
            ("projection", clusters.projection.numpy()),
            ("centre", clusters.centre.numpy()),
        ]  # type: ignore[union-attr]
        expected = nearest(transformed(vectors.copy(), todo), clusters.centroids.numpy())[1]
        labels = PseudoLabels(str(finished / "labels/deep-12-on-images-for-images")).table(["shard", "row", "label"])
        found = dict(
            zip(
                zip(labels["shard"].to_pylist(), labels["row"].to_pylist(), strict=True),
                labels["label"].to_pylist(),
                strict=True,
            )
        )
        mine = np.array([found[place] for place in zip(shard.tolist(), row.tolist(), strict=True)])
        assert (mine == expected).mean() > 0.995  # bfloat16 features, in other batches
        assert len(np.unique(mine)) == 12

    def test_inertia_falls_and_sizes_add_up(self, finished: Path) -> None:
        found = Checkpoint(str(finished / "clusters/deep-12-on-images")).results
        inertia = [entry["inertia"] for entry in found["history"]]
        assert inertia == sorted(inertia, reverse=True)
        assert sum(found["sizes"]) == found["points"] == 4600
        assert found["sampled_for_seeds"] is None

    def test_clusters_are_compared_with_labels_that_nobody_used(self, finished: Path) -> None:
        labels = PseudoLabels(str(finished / "labels/deep-12-on-images-for-images"))
        images = Corpus(str(finished / "images"))
        table = labels.table(["shard", "row", "label"])
        truth = {s.shard: images.rows(s.shard, ["truth"])["truth"].to_numpy() for s in images.shards("unlabeled")}
        known = [truth[a][b] for a, b in zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True)]
        from sklearn.metrics import normalized_mutual_info_score

        assert labels.results["nmi"] == pytest.approx(normalized_mutual_info_score(known, table["label"].to_numpy()), abs=1e-9)
        assert labels.results["known"] == 4600
        assert 0.1 < labels.results["purity"] <= 1

    def test_the_student_learns_clusters_of_other_images(self, finished: Path) -> None:
        student = Checkpoint(str(finished / "students/crossed")).model
        assert student["classes"] == [f"cluster {i}" for i in range(12)]
        assert (
            Checkpoint(str(finished / "clusters/deep-12-on-other")).record.inputs["features"]
            != (Checkpoint(str(finished / "clusters/deep-12-on-images")).record.inputs["features"])
        )
        hog = PseudoLabels(str(finished / "labels/hog-12-on-images-for-other"))
        assert hog.results["images"] == Corpus(str(finished / "other")).num_images("unlabeled")

    def test_what_is_frozen_is_the_students(self, finished: Path) -> None:
        student, judged = (load_model(finished / name).net.backbone for name in ("students/crossed", "tuned/crossed/fresh-2"))
        for name in ("conv1", "conv2"):
            for a, b in zip(getattr(student, name).parameters(), getattr(judged, name).parameters(), strict=True):
                assert np.array_equal(a.numpy(), b.numpy())
        # Batch norm starts every fresh scale at one; a trained student's is not.
        assert not np.array_equal(student.conv4[0].weight.numpy(), judged.conv4[0].weight.numpy())

    def test_a_cluster_can_be_asked_of_any_image(self, finished: Path) -> None:
        model = load_model(finished / "clusters/hog-12-on-images")
        pixels = np.random.default_rng(0).integers(0, 255, (5, 28, 28, 3)).astype(np.uint8)
        probs = model.probs(pixels)
        assert probs.shape == (5, 12)
        assert np.allclose(probs.sum(axis=1), 1, atol=1e-5)

    def test_random_weights_are_frozen_too(self, finished: Path) -> None:
        config = Checkpoint(str(finished / "tuned/random/fresh-2")).record.config
        assert config["freeze"] == 2

    def test_a_probe_is_no_labeler(self, finished: Path, tmp_path: Path) -> None:
        probes = Checkpoint(str(finished / "probes/crossed"))
        run = Run(str(tmp_path), inline(), echo=lambda line: None)
        with pytest.raises(SourceError, match="knows no classes"):
            run("l", label, tiny().labeler, images=Corpus(str(finished / "images")), model=probes)

    def test_without_validation_the_last_arm_with_clusters_is_taken(self) -> None:
        arms = [
            Arm(name, object(), clusters, None, "images", [])
            for name, clusters in (("a", None), ("b", 1), ("c", 1), ("d", None))
        ]  # type: ignore[arg-type]
        assert chosen([], arms).name == "c"

    def test_the_report_stands_alone(self, finished: Path) -> None:
        page = (finished / "report/report.html").read_text()
        assert "normalised mutual information" in page
        assert "cc+vgg-jigsaw++" in page
        assert page.count("<img") > 100
        assert 'src="http' not in page
        assert "<link" not in page
        assert "<script" not in page


class TestRestart:
    def test_a_clustering_that_was_killed_goes_on(
        self, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        features, model = Features(str(finished / "features/deep-on-images")), Checkpoint(str(finished / "teachers/deep"))
        config = override(tiny().cluster, {"k": 9, "tolerance": 0.0, "iterations": 6})
        whole = Run(str(tmp_path / "whole"), inline(), echo=lambda line: None)(
            "c", cluster_stage.cluster, config, features=features, model=model
        )
        real, calls = cluster_stage.dumped, []

        def killed(state: object) -> bytes:
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return real(state)  # type: ignore[arg-type]

        monkeypatch.setattr(cluster_stage, "dumped", killed)
        run = Run(str(tmp_path / "root"), inline(), echo=lambda line: None)
        with pytest.raises(KeyboardInterrupt):
            run("c", cluster_stage.cluster, config, features=features, model=model)
        monkeypatch.setattr(cluster_stage, "dumped", real)
        rest = run("c", cluster_stage.cluster, config, features=features, model=model)
        assert rest.folder.read_bytes("centroids.safetensors") == whole.folder.read_bytes("centroids.safetensors")
        assert [entry["moved"] for entry in rest.results["history"]] == [entry["moved"] for entry in whole.results["history"]]

    def test_labels_of_clusters_are_written_once(self, finished: Path, tmp_path: Path) -> None:
        clusters, images = Checkpoint(str(finished / "clusters/deep-12-on-images")), Corpus(str(finished / "images"))
        run = Run(str(tmp_path), inline(), echo=lambda line: None)
        found = run("l", label, tiny().labeler, images=images, model=clusters)
        names = [file.name for file in list_label_files(found.labels)]
        first = [found.labels.read_bytes(name) for name in names]
        (Path(found.path) / "_record.json").unlink()
        found.labels.remove(names[0])
        again = run("l", label, tiny().labeler, images=images, model=clusters)
        assert again.results["labeled_now"] < again.results["images"]
        assert [again.labels.read_bytes(name) for name in names] == first


BAD = [
    (
        "teacher",
        ["--set", "arms.x.teacher=nobody"],
        "arms.x.teacher=nobody is unknown; take one of small, deep, small-2016, hog",
    ),
    ("other", ["--set", "other=null"], "arms.crossed wants other images, and there are none; give other.unlabeled"),
    ("net", ["--set", "arms.x.teacher=deep"], "which are not the student's net alexnet; set arms.x.clusters"),
    (
        "k",
        ["--set", "arms.x.teacher=hog", "--set", "arms.x.clusters=4601"],
        "arms.x.clusters=4601 clusters are asked for and there are 4600 images to cluster",
    ),
    ("mix", ["--set", "student.mix=joint"], "student.mix must be pseudo"),
    ("name", ["--set", "arms.Über.teacher=hog"], "becomes a folder"),
    ("layer", ["--set", "teachers.deep.layer.name=conv9"], "no layer 'conv9'; the nearest are conv"),
    ("tiles", ["--set", "teachers.small.pretext.view.tile=20"], "tiles of 20 pixels do not fit"),
]


@pytest.mark.parametrize(("name", "arguments", "words"), BAD, ids=[case[0] for case in BAD])
def test_bad_input_is_one_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, arguments: list[str], words: str
) -> None:
    root = finished if name == "k" else tmp_path / "root"
    assert call("tiny", "--root", str(root), *arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert words in lines[0]
    assert "Traceback" not in captured.err


def test_labels_that_do_not_fit_the_head(finished: Path, tmp_path: Path) -> None:
    labels = PseudoLabels(str(finished / "labels/deep-12-on-images-for-images"))
    run = Run(str(tmp_path), inline(), echo=lambda line: None)
    with pytest.raises(ConfigError, match=r"know 12 classes and the labeled images other ones \(10\).*mix=pseudo"):
        run("s", train, override(tiny().student, {"mix": "joint"}), images=Corpus(str(finished / "images")), labels=labels)


@pytest.mark.slow
def test_jigsaw_stands_in_a_phase_of_hpt(tmp_path: Path) -> None:
    pretext = tiny().teachers["small"].pretext.model_dump() | {"schedule": {"length": 4}, "snapshots": (2,)}
    chosen = override(
        hpt_tiny(), {"base": pretext, "strategies": ("base", "hpt"), "finetune": None, "variants": {}, "base_steps": ()}
    )
    assert chosen.base.method == "jigsaw"
    report = hpt_job.hpt(Run(str(tmp_path), inline(), echo=lambda line: None), chosen)
    assert {row["strategy"] for row in report.results["rows"]} == {"base", "hpt"}


def test_students_of_images_without_any_label(finished: Path, tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    """Other images need no labels, and the sample of the defaults does not slip in beside them."""
    other = make_folder("heap", {"": 40})
    chosen = override(tiny(), {"other": {"unlabeled": str(other)}})
    assert chosen.other is not None
    assert chosen.other.labeled is None
    arms = {"x": ArmConfig(teacher=HOG, clusters=4, label_on="other")}
    small = chosen.model_copy(update={"arms": arms, "probe": None, "fresh": None, "random": False})
    report = job.knowledge_transfer(Run(str(tmp_path / "root"), inline(), echo=lambda line: None), small)
    student = Checkpoint(str(tmp_path / "root/students/x"))
    assert student.model["classes"] == [f"cluster {i}" for i in range(4)]
    assert {row["arm"] for row in report.results["rows"]} == {"x"}


def test_labeled_images_are_clustered_where_they_are_enough(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    """As `paper` has it: ImageNet without its labels."""
    train, test = make_folder("train", {"a": 30, "b": 30}), make_folder("test", {"a": 5, "b": 5})
    images = override(paper().images, {"labeled": str(train), "test": str(test)})
    small = tiny().model_copy(update={"images": images, "other": None, "probe": None, "fresh": None, "random": False,
                                      "arms": {"x": ArmConfig(teacher=HOG, clusters=4)}})  # fmt: skip
    job.knowledge_transfer(Run(str(tmp_path / "root"), inline(), echo=lambda line: None), small)
    labels = PseudoLabels(str(tmp_path / "root/labels/hog-4-on-images-for-images"))
    assert labels.results["images"] == 60
    assert labels.results["known"] == 60


def test_a_heap_of_ones_own_is_clustered_alone(
    tmp_path: Path, make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    heap, root = make_folder("heap", {"": 60}, size=(28, 28)), tmp_path / "root"
    assert call("tiny", "--unlabeled", str(heap), "--root", str(root)) == 0
    out = capsys.readouterr().out
    assert "60 unlabeled images" in out
    assert "there are no labels to judge it by" in out
    assert json.loads((root / "scores.json").read_text()) == []
    assert not (root / "teachers/small-2016").exists()


def test_a_heap_beside_labels_is_not_passed_over() -> None:
    """`paper` clusters its labeled images, since it has no others."""
    assert not paper().images.needs_unlabeled
    assert job.own_images(paper(), labels=True, heap=True).images.needs_unlabeled
    assert not job.own_images(paper(), labels=True, heap=False).images.needs_unlabeled


class TestRecipes:
    @pytest.mark.parametrize("name", RECIPES)
    def test_they_are_valid_and_named(self, name: str) -> None:
        assert recipe(name).arms

    def test_the_papers_values(self) -> None:
        chosen = paper()
        pretext = chosen.teachers["small"].pretext
        assert (pretext.permutations.count, pretext.permutations.distance) == (701, 3)
        assert (pretext.view.grey, pretext.view.occluded, pretext.view.norm) == (0.7, 2, "joint")
        assert (pretext.batch, pretext.optim.lr, pretext.schedule.length) == (256, 0.01, 350_000)
        assert {arm.clusters for arm in chosen.arms.values()} == {None, 2000}
        old = chosen.teachers["small-2016"].pretext
        assert (old.permutations.count, old.permutations.rule, old.view.grey, old.view.occluded) == (1000, "mean", 0.3, 0)
        assert [arm.clusters for arm in recipe("paper-clusters").arms.values()] == [500, 1000, 2000, 5000, 10_000]
