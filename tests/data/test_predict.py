"""Labelling: planning by subtraction, and the actor pool against a direct call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssl_ray.artifacts import Checkpoint, Corpus, LabelFile, PseudoLabels, Record, Shard
from ssl_ray.config import override
from ssl_ray.data.fold import fold
from ssl_ray.data.predict import Predict, plan, predict
from ssl_ray.data.shards import decode_all, read_encoded
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.errors import SourceError, StaleStageError
from ssl_ray.methods.self_training import SelfTraining, TrainConfig
from ssl_ray.models import load_model
from ssl_ray.scale import Scale, inline
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.label import LabelConfig, label
from ssl_ray.storage import Folder
from ssl_ray.tasks.classification import probs_of
from ssl_ray.train.loop import Loop
from ssl_ray.train.run import write_model


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


def make_model(folder: Path, classes: list[str], seed: int = 0) -> Checkpoint:
    import torch

    config = override(TrainConfig(), {"net.width": 8, "seed": seed, "preprocess.size": 28})
    loop = Loop(config, SelfTraining(config, len(classes)), None, steps=1, steps_per_epoch=1.0, device=torch.device("cpu"))
    write_model(Folder(str(folder)), loop.method.describe() | {"classes": classes}, loop)
    Record("Checkpoint", "train", "teacher", f"fake-{seed}", {}, {}, {}).save(Folder(str(folder)))
    return Checkpoint(str(folder))


@pytest.fixture
def teacher(tmp_path: Path, digits: Corpus) -> Checkpoint:
    return make_model(tmp_path / "teacher", digits.classes)


def test_the_pool_says_what_a_direct_call_says(ray_session: None, digits: Corpus, teacher: Checkpoint, quiet_run: Run) -> None:
    labels: PseudoLabels = quiet_run("labels", label, LabelConfig(), images=digits, model=teacher)
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
    Predict(digits.path, teacher.path, folder.path, 64, 1, "cpu")({k: np.array([v]) for k, v in
        (("shard", digits.shards("unlabeled")[0].shard), ("start", 0), ("stop", 10))})  # fmt: skip
    folder.write_json("_started.json", {"fingerprint": "x", "config": LabelConfig().model_dump(mode="json"),
                                        "inputs": {"images": digits.fingerprint, "model": teacher.fingerprint}})  # fmt: skip
    other = make_model(tmp_path / "other", digits.classes, seed=1)
    with pytest.raises(StaleStageError, match=r"inputs\.model"):
        run("l", label, LabelConfig(), images=digits, model=other)


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
        Predict(images.path, model.path, out.path, 64, 1, "cpu")(
            {"shard": np.array([piece.shard]), "start": np.array([0]), "stop": np.array([30])}
        )
        (out / "labels").remove(LabelFile(piece.shard, 0, 30).name)
        result = predict(out, run.scale, images=images, model=model, splits=["unlabeled"], budget=0.1)
        assert result["quarantined"] == 2
        assert result["images"] == 28

    def test_over_the_budget_stops_and_keeps_what_was_done(
        self, ray_session: None, quiet_run: Run, make_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        images = self.corpus(quiet_run, make_folder, bad=2)
        model = make_model(tmp_path / "m", images.classes)
        with pytest.raises(SourceError, match=r"2 of 30 images .* budget of 1\.0%.*unlabeled/0\.png"):
            quiet_run("l", label, LabelConfig(), images=images, model=model)
        assert Folder(f"{quiet_run.root.path}/l/labels").names()


def test_a_fold_does_not_depend_on_the_number_of_threads(digits: Corpus, teacher: Checkpoint, tmp_path: Path) -> None:
    out = Folder(str(tmp_path / "labels"))
    actor = Predict(digits.path, teacher.path, out.path, 128, 2, "cpu")
    for piece in digits.shards("unlabeled"):
        for start in range(0, piece.num_rows, 400):
            stop = min(start + 400, piece.num_rows)
            actor({"shard": np.array([piece.shard]), "start": np.array([start]), "stop": np.array([stop])})
    Record("PseudoLabels", "label", "l", "f", {"split": "unlabeled"}, {}, {"classes": digits.classes}).save(out)
    labels = PseudoLabels(out.path)
    sums = [
        fold(
            labels,
            ["confidence"],
            lambda _, t: np.float64(t["confidence"].to_numpy().sum()),
            lambda a, b: a + b,
            np.float64(0),
            n,
        )
        for n in (1, 3, 8)
    ]
    assert sums[0] == sums[1] == sums[2]
    assert sums[0] == pytest.approx(labels.table(["confidence"])["confidence"].to_numpy().sum(), rel=1e-5)
