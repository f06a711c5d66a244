"""Labelling: planning by subtraction, and the actor pool against a direct call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_ray.artifacts import Checkpoint, Corpus, PseudoLabels, Record, Scores, Shard
from ssl_ray.config import override
from ssl_ray.data.fold import fold, fold_rows
from ssl_ray.data.predict import predict
from ssl_ray.data.ranges import overlapping, plan
from ssl_ray.data.shards import decode_all, read_encoded
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.errors import SourceError, StaleStageError
from ssl_ray.label_files import LabelFile, list_label_files
from ssl_ray.models import load_model
from ssl_ray.scale import Scale, inline
from ssl_ray.stage import Run
from ssl_ray.stages.evaluate import EvaluateConfig, evaluate
from ssl_ray.stages.extract import ExtractConfig, extract
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.label import LabelConfig, label
from ssl_ray.storage import Folder
from ssl_ray.tasks.classification import probs_of
from tests.teachers import a_labeler, make_model


def shard(number: int, rows: int) -> Shard:
    return Shard(number, "unlabeled", "folder", rows, "")


class TestPlan:
    shards = (shard(0, 10), shard(3, 4))

    def test_all(self) -> None:
        assert plan(self.shards, [], 4) == [LabelFile(0, 0, 4), LabelFile(0, 4, 8), LabelFile(0, 8, 10), LabelFile(3, 0, 4)]

    def test_what_is_covered_is_left_out(self) -> None:
        done = [LabelFile(0, 4, 8), LabelFile(3, 0, 4)]
        assert plan(self.shards, done, 100) == [LabelFile(0, 0, 4), LabelFile(0, 8, 10)]

    def test_nothing_left(self) -> None:
        assert plan(self.shards, plan(self.shards, [], 3), 7) == []

    @pytest.mark.parametrize("size", [1, 3, 100])
    @pytest.mark.parametrize("seed", range(5))
    def test_done_and_todo_cover_each_row_once(self, size: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        pieces = plan(self.shards, [], 2)
        done = [piece for piece in pieces if draw.random() < 0.5]
        rows = [(f.shard, row) for f in [*done, *plan(self.shards, done, size)] for row in range(f.start, f.stop)]
        assert len(rows) == len(set(rows)) == 14


@pytest.fixture
def teacher(tmp_path: Path, digits: Corpus) -> Checkpoint:
    return make_model(tmp_path / "teacher", digits.classes)


def test_the_pool_says_what_a_direct_call_says(ray_session: None, digits: Corpus, teacher: Checkpoint, quiet_run: Run) -> None:
    labels: PseudoLabels = quiet_run("labels", label, LabelConfig(precision="float32"), images=digits, model=teacher)
    model = load_model(teacher.path)
    expected, ids = [], []
    for piece in digits.shards("unlabeled"):
        pixels, _ = decode_all(read_encoded(digits, piece, np.arange(piece.num_rows)), model.preprocess)
        expected.append(model.probs(pixels))
        ids += digits.rows(piece.shard)["image_id"].to_pylist()
    table = labels.table(["image_id", "confidence", "label", "probs"])
    direct = np.concatenate(expected)
    assert table["image_id"].to_pylist() == ids
    np.testing.assert_allclose(table["confidence"].to_numpy(), direct.max(1), atol=1e-4)
    np.testing.assert_allclose(probs_of(table, 10).astype(np.float32), direct, atol=1e-3)
    assert (table["label"].to_numpy() == direct.argmax(1)).mean() > 0.999


def test_a_restart_labels_only_what_is_missing(
    ray_session: None, digits: Corpus, teacher: Checkpoint, tmp_path: Path, scale: Scale
) -> None:
    small = override(scale, {"label_rows_per_file": 500})

    def run() -> PseudoLabels:
        return Run(str(tmp_path / "r"), small, echo=lambda line: None)("l", label, LabelConfig(), images=digits, model=teacher)

    first = run()
    before = first.table(["image_id", "confidence"]).to_pydict()
    names = first.labels.names()
    kept = {name: (Path(first.labels.path) / name).stat().st_mtime_ns for name in names[3:]}
    for name in names[:3]:  # as a kill would have left it: some files missing, no record
        (Path(first.labels.path) / name).unlink()
    (Path(first.path) / "_record.json").unlink()
    second = run()
    assert second.results["labeled_now"] == sum(LabelFile.parse(name).stop - LabelFile.parse(name).start for name in names[:3])  # type: ignore[union-attr]
    assert second.labels.names() == names
    assert second.table(["image_id", "confidence"]).to_pydict() == before
    assert {name: (Path(second.labels.path) / name).stat().st_mtime_ns for name in kept} == kept


def test_another_teacher_does_not_add_to_half_a_label_set(
    digits: Corpus, teacher: Checkpoint, tmp_path: Path, scale: Scale
) -> None:
    root = tmp_path / "r"
    run = Run(str(root), scale, echo=lambda line: None)
    folder = Folder(str(root / "l"))
    a_labeler(digits, teacher, folder).fused(LabelFile(digits.shards("unlabeled")[0].shard, 0, 10))
    mark = {"name": "l", "stage": "label", "fingerprint": "x", "computed": "", "built_on": [],
            "config": LabelConfig().model_dump(mode="json"),
            "inputs": {"images": digits.fingerprint, "model": teacher.fingerprint}}  # fmt: skip
    folder.write_sealed("_started.json", mark)
    other = make_model(tmp_path / "other", digits.classes, seed=1)
    with pytest.raises(StaleStageError, match=r"inputs\.model"):
        run("l", label, LabelConfig(), images=digits, model=other)


class TestOverlaps:
    def test_what_is_covered_twice_is_taken_away(self) -> None:
        files = [LabelFile(0, 0, 10), LabelFile(0, 5, 15), LabelFile(0, 10, 20), LabelFile(1, 0, 4), LabelFile(1, 0, 2)]
        gone = overlapping(files)
        assert gone == [LabelFile(0, 5, 15), LabelFile(1, 0, 2)]
        left = [file for file in files if file not in gone]
        assert plan([shard(0, 20), shard(1, 4)], left, 8) == []

    @pytest.mark.parametrize("seed", range(20))
    def test_whatever_two_cuts_leave_each_row_stands_once_in_the_end(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        shards = [shard(0, 37), shard(1, 20)]
        files = [file for size in (3, 5, 8) for file in plan(shards, [], size) if draw.random() < 0.4]
        files = list(dict.fromkeys(files))
        left = [file for file in files if file not in overlapping(files)]
        rows = [(f.shard, row) for f in [*left, *plan(shards, left, 4)] for row in range(f.start, f.stop)]
        assert sorted(rows) == [(s.shard, row) for s in shards for row in range(s.num_rows)]


@pytest.mark.parametrize("size", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_split_and_fused_give_the_same_rows(
    ray_session: None, digits: Corpus, teacher: Checkpoint, tmp_path: Path, scale: Scale, size: int
) -> None:
    def rows(name: str, **settings: Any) -> dict[str, Any]:
        chosen = override(scale, {"label_rows_per_file": size, **settings})
        run = Run(str(tmp_path / name), chosen, echo=lambda line: None)
        labels = run("l", label, LabelConfig(precision="float32"), images=digits, model=teacher)
        return labels.table(["image_id", "shard", "row", "label", "confidence"]).to_pydict()  # type: ignore[no-any-return]

    fused, split = rows("fused"), rows("split", decode="split")
    assert {k: v for k, v in fused.items() if k != "confidence"} == {k: v for k, v in split.items() if k != "confidence"}
    np.testing.assert_allclose(fused["confidence"], split["confidence"], atol=1e-6)


def test_features_come_by_the_same_engine(
    ray_session: None, digits: Corpus, teacher: Checkpoint, tmp_path: Path, scale: Scale
) -> None:
    """Through Ray with decoding split off, and directly."""

    def features(name: str, chosen: Scale) -> tuple[np.ndarray, ...]:
        run = Run(str(tmp_path / name), chosen, echo=lambda line: None)
        found = run("f", extract, ExtractConfig(splits=("train", "test"), precision="float32"), images=digits, model=teacher)
        assert not (tmp_path / name / "f/labels").exists()
        return found.table(digits.shards("train") + digits.shards("test"))  # type: ignore[no-any-return]

    far = features("ray", override(scale, {"decode": "split", "label_rows_per_file": 70}))
    near = features("here", inline())
    assert far[0].shape == near[0].shape
    assert len(far[0]) == 300
    for number in (1, 2):
        np.testing.assert_array_equal(far[number], near[number])
    np.testing.assert_allclose(far[0], near[0], atol=1e-4)


@pytest.mark.parametrize("decode", ["fused", "split"])
def test_ray_takes_the_work_for_actors_with_a_gpu(
    ray_session: None,
    digits: Corpus,
    teacher: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scale: Scale,
    decode: str,
) -> None:
    """There is no GPU here, so nothing is executed; but Ray Data has rules of its own for what may be asked beside one."""
    import ray.data

    asked: list[Any] = []
    monkeypatch.setattr(ray.data.Dataset, "iter_rows", lambda self: asked.append(self) or [])
    chosen = override(scale, {"decode": decode, "label_gpus": 1.0, "autoscaling": True})
    label_all = {"images": digits, "model": teacher, "splits": ["unlabeled"], "budget": 0.1}
    with pytest.raises(RuntimeError, match="came back without labels"):
        predict(Folder(str(tmp_path / "l")), chosen, **label_all)  # type: ignore[arg-type]
    assert asked


def test_a_task_that_ray_repeats_finds_its_file(digits: Corpus, teacher: Checkpoint, tmp_path: Path) -> None:
    labeler = a_labeler(digits, teacher, Folder(str(tmp_path / "l")))
    file = LabelFile(digits.shards("unlabeled")[0].shard, 0, 50)
    assert labeler.fused(file)["predict_s"] > 0
    path = tmp_path / "l" / "labels" / file.name
    before = path.stat().st_mtime_ns
    again = labeler.fused(file)
    assert again["rows"] == 50
    assert again["predict_s"] == 0, "nothing is paid for twice"
    assert path.stat().st_mtime_ns == before


class TestTopK:
    def test_the_rest_is_shared_by_the_others(self, digits: Corpus, teacher: Checkpoint, tmp_path: Path) -> None:
        file = LabelFile(digits.shards("unlabeled")[0].shard, 0, 40)
        full, short = Folder(str(tmp_path / "full")), Folder(str(tmp_path / "short"))
        a_labeler(digits, teacher, full).fused(file)
        a_labeler(digits, teacher, short, top_k=3).fused(file)
        a, b = (folder.read_table(f"labels/{file.name}") for folder in (full, short))
        assert a["label"] == b["label"]
        assert a["confidence"] == b["confidence"]
        dense, restored = probs_of(a, 10).astype(np.float32), probs_of(b, 10).astype(np.float32)
        best = np.sort(dense, axis=1)[:, -3:]
        np.testing.assert_allclose(np.sort(restored, axis=1)[:, -3:], best, atol=1e-3)
        np.testing.assert_allclose(restored.sum(axis=1), 1.0, atol=5e-3)
        rest = np.sort(restored, axis=1)[:, :-3]
        assert (rest.max(axis=1) - rest.min(axis=1) < 1e-3).all()

    def test_a_student_of_top_k_labels_sees_whole_distributions(
        self, digits: Corpus, teacher: Checkpoint, tmp_path: Path
    ) -> None:
        run = Run(str(tmp_path / "r"), inline(), echo=lambda line: None)
        labels = run("l", label, LabelConfig(top_k=2), images=digits, model=teacher)
        assert labels.probs_columns == ["row", "probs", "top_labels"]
        assert probs_of(labels.read(labels.files[0], labels.probs_columns), 10).shape[1] == 10


def test_an_unlabeled_image_that_is_a_test_image_is_left_out_in_labelling(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Where ingest may not read the unlabeled images, labelling, which reads every one, looks for leaks."""
    test, rest = make_folder("test", {"a": 4, "b": 4}), make_folder("rest", {"": 20})
    (rest / "7.png").write_bytes((test / "a" / "1.png").read_bytes())
    run = Run(str(tmp_path / "root"), inline(), echo=lambda line: None)
    images = run(
        "images",
        ingest,
        ImagesConfig(labeled=str(make_folder("train", {"a": 9, "b": 9})), unlabeled=str(rest), test=str(test), leak_read_mb=0),
    )
    assert images.results["leak_check"] == "left to labelling"
    labels = run(
        "l", label, LabelConfig(quarantine_budget=0.0), images=images, model=make_model(tmp_path / "m", images.classes)
    )
    assert labels.results["leaked"] == 1
    assert labels.results["quarantined"] == 0
    assert "unlabeled/7.png" not in labels.table(["image_id"])["image_id"].to_pylist()
    assert len(labels.table(["image_id"])) == 19


class TestEvaluation:
    """Test images that change after they were listed do not cost the model that was trained meanwhile."""

    @pytest.fixture
    def evaluation_folder(self, make_folder: Callable[..., Path]) -> Path:
        return make_folder("test", {"a": 4, "b": 4})

    @pytest.fixture
    def run(self, tmp_path: Path) -> Run:
        small_batches = inline().model_copy(update={"label_batch": 8})
        return Run(str(tmp_path / "root"), small_batches, echo=lambda line: None)

    @pytest.fixture
    def images(self, run: Run, make_folder: Callable[..., Path], evaluation_folder: Path) -> Corpus:
        labeled = make_folder("train", {"a": 9, "b": 9})
        return run(
            "images",
            ingest,
            ImagesConfig(labeled=str(labeled), test=str(evaluation_folder), val_images=4, needs_unlabeled=False),
        )

    def scores(self, run: Run, images: Corpus, tmp_path: Path) -> Scores:
        model = make_model(tmp_path / "model", images.classes)
        return run("scores", evaluate, EvaluateConfig(model="x", splits=("test",)), images=images, model=model)

    def test_a_deleted_one_is_left_out_and_counted(
        self, run: Run, images: Corpus, evaluation_folder: Path, tmp_path: Path
    ) -> None:
        (evaluation_folder / "a" / "1.png").unlink()
        scores = self.scores(run, images, tmp_path)
        assert {row["n"] for row in scores.rows} == {7}
        assert "1 images were taken out since they were listed" in scores.results["summary"]

    def test_labels_stay_with_their_images(self, run: Run, images: Corpus, evaluation_folder: Path, tmp_path: Path) -> None:
        (evaluation_folder / "a" / "1.png").unlink()
        scores = self.scores(run, images, tmp_path)
        seen = scores.of_shards(images.shards("test"), ["image_id", "shard", "row"])
        names = [images.classes[label] for label in images.labels_of(seen)]
        assert names == [name.split("/")[1] for name in seen["image_id"].to_pylist()]

    def test_a_damaged_one_is_named_and_once_repaired_counts(
        self, run: Run, images: Corpus, evaluation_folder: Path, tmp_path: Path
    ) -> None:
        file = evaluation_folder / "a" / "1.png"
        whole_file = file.read_bytes()
        file.write_bytes(whole_file[:60])
        with pytest.raises(SourceError, match=r"a/1\.png cannot be decoded"):
            self.scores(run, images, tmp_path)
        file.write_bytes(whole_file + b"repaired")
        assert {row["n"] for row in self.scores(run, images, tmp_path).rows} == {8}

    def test_a_damaged_one_that_was_taken_out_is_left_out(
        self, run: Run, images: Corpus, evaluation_folder: Path, tmp_path: Path
    ) -> None:
        (evaluation_folder / "a" / "1.png").write_bytes(b"")
        with pytest.raises(SourceError, match="no data"):
            self.scores(run, images, tmp_path)
        (evaluation_folder / "a" / "1.png").unlink()
        assert {row["n"] for row in self.scores(run, images, tmp_path).rows} == {7}

    def test_all_gone_is_an_error(self, run: Run, images: Corpus, evaluation_folder: Path, tmp_path: Path) -> None:
        for file in evaluation_folder.rglob("*.png"):
            file.unlink()
        with pytest.raises(SourceError, match="all images of the split test were deleted"):
            self.scores(run, images, tmp_path)


class TestQuarantine:
    def corpus(self, run: Run, make_folder: Callable[..., Path], bad: int) -> Corpus:
        rest = make_folder("rest", {"": 30})
        for index in range(bad):
            (rest / f"{index}.png").write_bytes((rest / f"{index}.png").read_bytes()[:60] if index % 2 else b"")
        labeled = make_folder("train", {"a": 10, "b": 10})
        return run("images", ingest, ImagesConfig(labeled=str(labeled), unlabeled=str(rest), columns={"image": None}))

    def test_neighbours_live_and_reasons_are_kept(
        self, ray_session: None, quiet_run: Run, make_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        images = self.corpus(quiet_run, make_folder, bad=2)
        model = make_model(tmp_path / "m", images.classes)
        labels: PseudoLabels = quiet_run("l", label, LabelConfig(quarantine_budget=0.1), images=images, model=model)
        good = labels.table(["image_id"])["image_id"].to_pylist()
        bad = [row for name in (labels.folder / "quarantine").names() for row in
               (labels.folder / "quarantine").read_table(name).to_pylist()]  # fmt: skip
        assert len(good) == 28
        assert {row["image_id"] for row in bad} == {"unlabeled/0.png", "unlabeled/1.png"}
        assert not set(good) & {row["image_id"] for row in bad}
        assert all("cannot be decoded" in row["reason"] for row in bad)
        assert labels.results["quarantined"] == 2

    def test_a_kill_between_quarantine_and_labels_counts_nothing_twice(
        self, tmp_path: Path, make_folder: Callable[..., Path]
    ) -> None:
        """The quarantine file of a range was written, its label file was not, and the restart cuts the range otherwise."""
        run = Run(str(tmp_path / "root"), override(inline(), {"label_rows_per_file": 7}), echo=lambda line: None)
        images = self.corpus(run, make_folder, bad=2)
        model = make_model(tmp_path / "m", images.classes)
        piece = images.shards("unlabeled")[0]
        out = Folder(str(tmp_path / "l"))
        a_labeler(images, model, out).fused(LabelFile(piece.shard, 0, 30))
        (out / "labels").remove(LabelFile(piece.shard, 0, 30).name)
        result = predict(out, run.scale, images=images, model=model, splits=["unlabeled"], budget=0.1)
        assert result["quarantined"] == 2
        assert result["images"] == 28
        files = list_label_files(out / "labels")
        assert plan([piece], files, 7) == []
        assert sum((out / "labels").num_rows(file.name) for file in files) == 28

    def test_a_kill_near_the_budget_loses_nothing(self, tmp_path: Path, make_folder: Callable[..., Path]) -> None:
        """An orphan of a kill is not counted with the same images done again: that would stop a job that is within its budget."""
        run = Run(str(tmp_path / "root"), override(inline(), {"label_rows_per_file": 5}), echo=lambda line: None)
        images = self.corpus(run, make_folder, bad=1)
        model = make_model(tmp_path / "m", images.classes)
        piece = images.shards("unlabeled")[0]
        out = Folder(str(tmp_path / "l"))
        labeler = a_labeler(images, model, out)
        for file in plan([piece], [], 5):
            labeler.fused(file)
            if (out / "quarantine").names():
                (out / "labels").remove(file.name)
                break
        result = predict(out, run.scale, images=images, model=model, splits=["unlabeled"], budget=1 / 30)
        assert result["quarantined"] == 1
        files = list_label_files(out / "labels")
        assert plan([piece], files, 5) == []
        assert sum((out / "labels").num_rows(file.name) for file in files) == 29

    def test_files_that_do_not_add_up_are_done_again(self, tmp_path: Path, make_folder: Callable[..., Path]) -> None:
        """An actor of a killed job wrote a quarantine file, the next job took it for an orphan, and the actor wrote its labels."""
        run = Run(str(tmp_path / "root"), override(inline(), {"label_rows_per_file": 7}), echo=lambda line: None)
        images = self.corpus(run, make_folder, bad=2)
        model = make_model(tmp_path / "m", images.classes)
        out = Folder(str(tmp_path / "l"))
        first = predict(out, run.scale, images=images, model=model, splits=["unlabeled"], budget=0.1)
        for name in (out / "quarantine").names():
            (out / "quarantine").remove(name)
        again = predict(out, run.scale, images=images, model=model, splits=["unlabeled"], budget=0.1)
        assert again["quarantined"] == first["quarantined"] == 2
        assert 0 < again["labeled_now"] <= 14, "those ranges alone"

    def test_over_the_budget_stops_and_keeps_what_was_done(
        self, ray_session: None, quiet_run: Run, make_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        images = self.corpus(quiet_run, make_folder, bad=2)
        model = make_model(tmp_path / "m", images.classes)
        with pytest.raises(SourceError, match=r"2 of 30 images .* budget of 1\.0%.*unlabeled/0\.png"):
            quiet_run("l", label, LabelConfig(), images=images, model=model)
        assert Folder(f"{quiet_run.root.path}/l/labels").names()


def test_a_fold_combines_in_file_order(digits: Corpus, teacher: Checkpoint, tmp_path: Path) -> None:
    out = Folder(str(tmp_path / "labels"))
    labeler = a_labeler(digits, teacher, out)
    for piece in plan(digits.shards("unlabeled"), [], 100):
        labeler.fused(piece)
    Record("PseudoLabels", "label", "l", "f", {"split": "unlabeled"}, {}, {"classes": digits.classes}).save(out)
    labels = PseudoLabels(out.path)
    seen = fold(labels, ["row"], lambda file, table: [(file.shard, file.start, len(table))], lambda a, b: a + b, [])
    assert seen == [(file.shard, file.start, file.stop - file.start) for file in labels.files]
    assert len(seen) > 40, "more files than are read at a time"
    total = fold(labels, ["confidence"], lambda _, t: t["confidence"].to_numpy().sum(dtype=np.float64), lambda a, b: a + b, 0.0)
    assert total == pytest.approx(labels.table(["confidence"])["confidence"].to_numpy().sum(dtype=np.float64))
    rows = fold_rows(labels.labels, labels.files, ["row"], lambda table: [table["row"].to_numpy()], lambda a, b: a + b, [])
    np.testing.assert_array_equal(np.concatenate(rows), labels.table(["row"])["row"].to_numpy())


def test_what_gives_numbers_that_are_not_finite_goes_to_quarantine(digits: Corpus, teacher: Checkpoint, tmp_path: Path) -> None:
    """Neither a label nor a feature: a clustering or a student would choke on it much later."""
    out = Folder(str(tmp_path / "labels"))
    labeler = a_labeler(digits, teacher, out, output="features", leaks=False)
    real = labeler.model.features

    def broken(pixels: np.ndarray, batch: int | None = None) -> np.ndarray:
        found = real(pixels, batch)
        found[3] = np.nan
        return found

    labeler.model.features = broken  # type: ignore[method-assign]
    shard = digits.shards("unlabeled")[0].shard
    done = labeler.fused(LabelFile(shard, 0, 100))  # two batches of 64
    assert done["quarantined"] == 2
    kept = (out / "features").read_table(LabelFile(shard, 0, 100).name)
    assert sorted(set(range(100)) - set(kept["row"].to_pylist())) == [3, 67]
    reasons = (out / "quarantine").read_table(LabelFile(shard, 0, 100).name)
    assert set(reasons["reason"].to_pylist()) == {"gave the model numbers that are not finite"}
