from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_ray.artifacts import Corpus
from ssl_ray.data.shards import decode_all, read_encoded
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.data.sources.listing import require_folder
from ssl_ray.errors import SourceError
from ssl_ray.schema import NO_LABEL
from ssl_ray.settings.views import Preprocess
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest

Make = Callable[..., Path]


def corpus(run: Run, **settings: Any) -> Corpus:
    return run("images", ingest, ImagesConfig(**{"labeled": "x", **settings}))


def write_parquet(path: Path, folder: Path, columns: dict[str, list[Any]] | None = None, name: str = "image") -> str:
    files = sorted(folder.rglob("*.png"))
    table = pa.table(
        {name: [file.read_bytes() for file in files], "label": [file.parent.name for file in files], **(columns or {})}
    )
    pq.write_table(table, path, row_group_size=3)
    return str(path)


class TestSamples:
    def test_splits_are_disjoint_and_stratified(self, digits: Corpus) -> None:
        assert digits.results["images"] == {"train": 100, "val": 200, "test": 200, "unlabeled": 4500}
        ids = [i for shard in digits.all_shards for i in digits.rows(shard.shard)["image_id"].to_pylist()]
        assert len(set(ids)) == 5000
        assert set(digits.results["per_class"].values()) == {10}
        assert (digits.column("unlabeled", "label") == NO_LABEL).all(), "no label of an unlabeled image is visible"
        assert (digits.column("unlabeled", "truth") >= 0).all()
        assert (digits.column("train", "truth") == NO_LABEL).all()

    def test_pixels_come_back(self, digits: Corpus) -> None:
        shard = digits.shards("test")[0]
        data = read_encoded(digits, shard, np.array([0, 7, 150]))
        images, failures = decode_all(data, Preprocess(size=28))
        assert images.shape == (3, 28, 28, 3)
        assert not failures
        assert images.max() > 200

    def test_unknown_sample(self, quiet_run: Run) -> None:
        with pytest.raises(SourceError, match="sample:mnist5k"):
            corpus(quiet_run, labeled="sample:cifar")


class TestFolders:
    def test_three_folders(self, quiet_run: Run, make_folder: Make) -> None:
        images = corpus(
            quiet_run,
            labeled=str(make_folder("train", {"cat": 6, "dog": 5})),
            unlabeled=str(make_folder("rest", {"": 7, "sub": 3})),
            test=str(make_folder("test", {"cat": 2, "dog": 2})),
            shard_rows=4,
        )
        assert images.classes == ["cat", "dog"]
        assert images.results["images"] == {"train": 11, "val": 0, "test": 4, "unlabeled": 10}
        assert [shard.num_rows for shard in images.shards("train")] == [4, 4, 3]
        assert np.bincount(images.column("train", "label")).tolist() == [6, 5]

    def test_without_a_test_source_a_fifth_is_kept(self, quiet_run: Run, make_folder: Make) -> None:
        labeled, rest = make_folder("train", {"a": 10, "b": 10}), make_folder("rest", {"": 3})
        assert corpus(quiet_run, labeled=str(labeled), unlabeled=str(rest)).results["images"]["test"] == 4

    def test_hidden_labels(self, quiet_run: Run, make_folder: Make) -> None:
        images = corpus(quiet_run, labeled=str(make_folder("all", {"a": 20, "b": 20})), labels=4)
        assert images.results["images"] == {"train": 4, "val": 0, "test": 8, "unlabeled": 28}

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda make: {"labeled": "/nowhere/at/all"}, "does not exist"),
            (lambda make: {"labeled": str(make("empty", {"a": 0, "b": 0}))}, "holds no images"),
            (lambda make: {"labeled": str(make("loose", {"": 4}))}, "no class sub-folders"),
            (lambda make: {"labeled": str(make("mixed", {"": 1, "a": 3, "b": 3}))}, "outside the class sub-folders"),
            (lambda make: {"labeled": str(make("one", {"a": 9}))}, "two or more"),
            (lambda make: {"test": str(make("other", {"a": 2, "wolf": 2}))}, "classes without labels: wolf"),
            (lambda make: {"unlabeled": None}, "no unlabeled images"),
            (lambda make: {"labels": 1}, "1 labels for 2 classes"),
            (lambda make: {"labels": 500}, "images.labels=500 is more than the 20"),
            (lambda make: {"test": None, "test_images": 50}, "images.test_images=50 is more than the 20"),
            (lambda make: {"test": None, "test_images": 0}, "no test images"),
            (lambda make: {"unlabeled": str(make("test", {}).parent)}, "stands in"),
            (lambda make: {"labeled": "wds:x-{0..9}.tar"}, "x-0.tar: no such file"),
            (lambda make: {"labeled": str(make("train", {}) / "*.parquet")}, "no such file"),
        ],
        ids=[
            "missing",
            "empty",
            "no classes",
            "mixed",
            "one class",
            "test class",
            "no unlabeled",
            "few",
            "many",
            "many tests",
            "no test",
            "overlap",
            "wds",
            "no parquet",
        ],
    )
    def test_bad_input(self, quiet_run: Run, make_folder: Make, spoil: Callable[[Make], dict[str, Any]], message: str) -> None:
        good = {
            "labeled": str(make_folder("train", {"a": 10, "b": 10})),
            "unlabeled": str(make_folder("rest", {"": 3})),
            "test": str(make_folder("test", {"a": 2, "b": 2})),
        }
        with pytest.raises(SourceError, match=message):
            corpus(quiet_run, **(good | spoil(make_folder)))

    @pytest.mark.parametrize("source", ["", " ", "gs://bucket/x", "wds:gs://bucket/x.tar", "caf\udce9/", "a\0b"])
    @pytest.mark.parametrize("name", ["labeled", "unlabeled", "test"])
    def test_a_source_that_no_file_system_serves_is_refused(self, name: str, source: str) -> None:
        with pytest.raises(ValueError, match=r"is empty|cannot be read|not UTF-8"):
            ImagesConfig(**{name: source})

    @pytest.mark.parametrize("exists", [True, False])
    def test_a_tar_file_without_its_prefix_says_so(self, tmp_path: Path, exists: bool) -> None:
        if exists:
            (tmp_path / "x.tar").write_bytes(bytes(1024))
        with pytest.raises(SourceError, match=f"write wds:{tmp_path}/x.tar"):
            require_folder(f"{tmp_path}/x.tar")

    def test_a_labeled_file_that_is_no_image_is_named(self, quiet_run: Run, make_folder: Make) -> None:
        labeled = make_folder("train", {"a": 10, "b": 10})
        (labeled / "a" / "note.png").write_text("buy milk")
        with pytest.raises(SourceError, match=r"note\.png cannot be decoded: it is no picture"):
            corpus(quiet_run, labeled=str(labeled), unlabeled=str(make_folder("rest", {"": 3})))

    def test_a_source_that_changed_is_noticed(self, quiet_run: Run, make_folder: Make) -> None:
        rest = make_folder("rest", {"": 3})
        images = corpus(quiet_run, labeled=str(make_folder("train", {"a": 10, "b": 10})), unlabeled=str(rest))
        shard = images.shards("unlabeled")[0]
        (rest / "1.png").write_bytes(b"other")
        with pytest.raises(SourceError, match="changed since"):
            read_encoded(images, shard, np.arange(3))
        (rest / "1.png").unlink()
        with pytest.raises(SourceError, match="deleted since"):
            read_encoded(images, shard, np.arange(3))


class TestParquet:
    def test_bytes_and_structs(self, quiet_run: Run, make_folder: Make, tmp_path: Path) -> None:
        folder = make_folder("train", {"cat": 10, "dog": 10})
        labeled = write_parquet(tmp_path / "l.parquet", folder)
        struct = pa.array([{"bytes": f.read_bytes(), "path": f.name} for f in sorted(make_folder("u", {"": 5}).glob("*.png"))])
        pq.write_table(pa.table({"image": struct, "id": list("abcde")}), tmp_path / "u.parquet")
        images = corpus(quiet_run, labeled=labeled, unlabeled=str(tmp_path / "u.parquet"))
        assert images.results["images"]["unlabeled"] == 5
        shard = images.shards("unlabeled")[0]
        assert images.rows(shard.shard)["image_id"].to_pylist() == [f"unlabeled/{i}" for i in "abcde"]
        assert read_encoded(images, shard, np.array([1, 4]))[1] == struct[4].as_py()["bytes"]

    def test_a_clash_of_ids_names_both(self, quiet_run: Run, make_folder: Make, tmp_path: Path) -> None:
        labeled = write_parquet(tmp_path / "l.parquet", make_folder("train", {"a": 5, "b": 5}), {"id": [*"abcdefghi", "a"]})
        unlabeled = str(make_folder("rest", {"": 3}))
        with pytest.raises(SourceError, match=r"labeled/a: .*row [09] and .*row [09]"):
            corpus(quiet_run, labeled=labeled, unlabeled=unlabeled, test_images=2)

    def test_no_image_column(self, quiet_run: Run, make_folder: Make, tmp_path: Path) -> None:
        labeled = write_parquet(tmp_path / "l.parquet", make_folder("train", {"a": 5, "b": 5}), name="picture")
        with pytest.raises(SourceError, match=r"picture.*images\.columns\.image"):
            corpus(quiet_run, labeled=labeled)
        assert corpus(quiet_run, labeled=labeled, columns={"image": "picture"}, labels=4, test_images=2).classes == ["a", "b"]
