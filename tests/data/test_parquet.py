from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssl_ray.data.shards import read_rows
from ssl_ray.data.sources import ColumnsConfig, Listing
from ssl_ray.data.sources.parquet import list_parquet
from ssl_ray.errors import SourceError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ANIMALS = ["cat", "dog", "frog"]


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, labels: Any, images: Any = None, metadata: dict[bytes, bytes] | None = None, **columns: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [png(value) for value in range(len(labels))] if images is None else images
    table = pa.table({"image": images, "label": labels, **columns}).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=2)
    return str(path)


def listed(source: Any, *, labeled: bool = True, **columns: str) -> Listing:
    return list_parquet(str(source), ColumnsConfig(**columns), labeled=labeled)


def class_names(listing: Listing) -> list[str | None]:
    return listing.rows.table()["class_name"].to_pylist()


def ids(listing: Listing) -> list[str]:
    return listing.rows.table()["image_id"].to_pylist()


def class_label(**feature: Any) -> dict[bytes, bytes]:
    features = {"label": {"_type": "ClassLabel", **feature}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def raw_text(*values: bytes) -> pa.Array:
    """A text column with any bytes, as careless programs write it."""
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"".join(values)))


class TestLabels:
    @pytest.mark.parametrize(
        ("labels", "names"),
        [
            (pa.array(["cat", "dog"], pa.large_string()), ["cat", "dog"]),
            (pa.array([b"cat", b"dog"]), ["cat", "dog"]),
            (pa.array([b"cat", b"dog"], pa.binary(3)), ["cat", "dog"]),
            (pa.array(["cat", "dog"]).dictionary_encode(), ["cat", "dog"]),
            (pa.array([" cat\n", "dog "]), ["cat", "dog"]),
            (pa.array(["cafe\u0301", "caf\u00e9"]), ["caf\u00e9"] * 2),
            (pa.array([3, 0], pa.uint8()), ["3", "0"]),
            (pa.array([3.0, 0.0]), ["3", "0"]),
            (pa.array([True, False]), ["true", "false"]),
        ],
        ids=str,
    )
    def test_labels_of_many_types_are_names(self, tmp_path: Path, labels: pa.Array, names: list[str]) -> None:
        assert class_names(listed(write(tmp_path / "a.parquet", labels))) == names

    @pytest.mark.parametrize(
        ("labels", "reason"),
        [
            (pa.array([0, None, 1]), "null"),
            (pa.array(["a", " ", "b"]), "empty"),
            (pa.array([0.0, float("nan"), 1.0]), "NaN"),
            (pa.array([0, -1, 1]), "-1"),
            (pa.array([0.0, -1.0, 1.0]), "-1"),
        ],
        ids=["null", "empty", "nan", "minus one", "minus one as a float"],
    )
    def test_rows_without_a_label_are_left_out_and_counted(self, tmp_path: Path, labels: pa.Array, reason: str) -> None:
        listing = listed(write(tmp_path / "a.parquet", labels))
        assert ids(listing) == ["a.parquet:0", "a.parquet:2"]
        assert listing.dropped == {f"Parquet row without a label ({reason})": 1}

    @pytest.mark.parametrize("labels", [[-1, -1], [None, None], [float("nan")] * 2])
    def test_a_source_without_any_label_is_refused(self, tmp_path: Path, labels: list[Any]) -> None:
        with pytest.raises(SourceError, match=r"no row with a label .*2 Parquet row without.*--unlabeled"):
            listed(write(tmp_path / "a.parquet", labels))

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (pa.array([["a"], ["b"]]), "list<"),
            (pa.array([{"x": 1}, {"x": 2}]), r"struct<.*images\.columns\.label=label\.x"),
            (pa.array([[("a", 1)]] * 2, pa.map_(pa.string(), pa.int64())), "map<"),
            (pa.array([0, 1], pa.timestamp("s")), "timestamp"),
            (pa.array([0, 1]).cast(pa.decimal128(20, 0)), "decimal"),
            (pa.array([0.0, 1.5]), r"row 1 holds 1\.5; classes are whole numbers"),
            (pa.array([0.0, float("inf")]), "row 1 holds inf"),
            (pa.array([0, -100]), "row 1 holds -100"),
            (pa.array([b"cat", b"\xe9"]), "row 1 .*not text in UTF-8"),
            (raw_text(b"cat", b"\xe9t"), "row 1 .*not text in UTF-8"),
        ],
        ids=["list", "struct", "map", "timestamp", "decimal", "half", "infinity", "negative", "bytes", "text"],
    )
    def test_other_values_are_refused(self, tmp_path: Path, labels: pa.Array, message: str) -> None:
        with pytest.raises(SourceError, match=message):
            listed(write(tmp_path / "a.parquet", labels))

    def test_metadata_names_the_numbers(self, tmp_path: Path) -> None:
        source = write(tmp_path / "a.parquet", [2, 0, -1], metadata=class_label(names=ANIMALS))
        assert class_names(listed(source)) == ["frog", "cat"]

    def test_a_number_beyond_the_names_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="row 1 holds 3, and the file's metadata names 3 classes"):
            listed(write(tmp_path / "a.parquet", [0, 3], metadata=class_label(names=ANIMALS)))

    def test_one_name_for_two_numbers_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="two numbers the class name 'cat'"):
            listed(write(tmp_path / "a.parquet", [0, 1], metadata=class_label(names=["cat", "cat"])))

    @pytest.mark.parametrize(
        "metadata",
        [{b"huggingface": b"{"}, {b"huggingface": b"[" * 100_000}, {b"huggingface": b"[]"}, class_label(num_classes=3)],
    )
    def test_metadata_without_names_leaves_the_numbers(self, tmp_path: Path, metadata: dict[bytes, bytes]) -> None:
        assert class_names(listed(write(tmp_path / "a.parquet", [2, 0], metadata=metadata))) == ["2", "0"]

    def test_a_field_of_a_struct_is_named_with_dots(self, tmp_path: Path) -> None:
        source = write(tmp_path / "a.parquet", [{"x": {"y": "cat"}}, {"x": None}])
        assert class_names(listed(source, label="label.x.y")) == ["cat"]

    def test_a_name_with_a_dot_is_a_column(self, tmp_path: Path) -> None:
        source = write(tmp_path / "a.parquet", ["a", "b"], **{"label.x": ["c", "d"]})
        assert class_names(listed(source, label="label.x")) == ["c", "d"]

    def test_files_agree_on_the_kind_of_labels(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", [0, 1])
        write(tmp_path / "b.parquet", ["cat", "dog"])
        with pytest.raises(SourceError, match=r"numbers in .*a\.parquet and text in .*b\.parquet"):
            listed(tmp_path / "*.parquet")

    def test_named_numbers_and_text_agree(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", [0, 1], metadata=class_label(names=ANIMALS))
        write(tmp_path / "b.parquet", ["cat", "dog"])
        assert class_names(listed(tmp_path / "*.parquet")) == ["cat", "dog"] * 2


class TestColumns:
    @pytest.mark.parametrize("name", ["image", "label", "id"])
    def test_two_columns_of_one_name_are_refused(self, tmp_path: Path, name: str) -> None:
        arrays = {"image": pa.array([png(0)]), "label": pa.array(["a"]), "id": pa.array(["x"])}
        fields = [*arrays.items(), (name, arrays[name])]
        pq.write_table(pa.table([column for _, column in fields], [field for field, _ in fields]), tmp_path / "a.parquet")
        with pytest.raises(SourceError, match=f"2 columns named '{name}'"):
            listed(tmp_path / "a.parquet", id="id")

    def test_none_numbers_the_rows(self, tmp_path: Path) -> None:
        source = write(tmp_path / "a.parquet", ["a", "b"], image_id=[7, 7])
        assert ids(listed(source)) == ["7", "7"]
        assert ids(listed(source, id="none")) == ["a.parquet:0", "a.parquet:1"]

    def test_ids_of_a_type_that_is_none_are_refused_with_the_setting(self, tmp_path: Path) -> None:
        source = write(tmp_path / "a.parquet", ["a", "b"], key=[0.5, 1.5])
        with pytest.raises(SourceError, match=r"double.*images\.columns\.id=none"):
            listed(source, id="key")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"PAR1",
            b"hello, this is no Parquet",
            b"PAR1" + b"x" * 100 + b"\x32\0\0\0PAR1",
            b"PAR1" + b"x" * 100 + b"\x32\0\0\0PARE",
        ],
        ids=["empty", "cut", "text", "footer", "encrypted"],
    )
    def test_a_damaged_file_is_named_in_one_line(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.parquet").write_bytes(content)
        with pytest.raises(SourceError, match=r"a\.parquet cannot be read as Parquet: [^\n]+; take it out"):
            listed(tmp_path / "a.parquet")

    def test_files_without_rows_add_nothing(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", pa.array([], pa.string()), pa.array([], pa.binary()))
        with pytest.raises(SourceError, match="holds no rows"):
            listed(tmp_path / "a.parquet")
        write(tmp_path / "b.parquet", ["cat"])
        assert len(listed(tmp_path / "*.parquet")) == 1


class TestPaths:
    @pytest.fixture
    def pictures(self, tmp_path: Path) -> Path:
        (tmp_path / "img").mkdir()
        for value in range(3):
            (tmp_path / "img" / f"{value}.png").write_bytes(png(100 + value))
        return tmp_path

    def read(self, listing: Listing) -> list[Any]:
        return read_rows(listing.rows.table(), listing.format, listing.image_column)

    @pytest.mark.parametrize("absolute", [False, True])
    @pytest.mark.parametrize("kind", ["struct", "struct of paths", "null bytes", "text"])
    def test_files_are_read_where_there_are_no_bytes(self, pictures: Path, kind: str, absolute: bool) -> None:
        paths = [f"{pictures}/img/{i}.png" if absolute else f"img/{i}.png" for i in range(3)]
        images = {
            "struct": pa.array([{"bytes": None, "path": path} for path in paths], IMAGE),
            "struct of paths": pa.array([{"path": path} for path in paths]),
            "null bytes": pa.array([{"bytes": None, "path": path} for path in paths]),
            "text": pa.array(paths),
        }[kind]
        listing = listed(write(pictures / "a.parquet", ["a", "b", "c"], images))
        assert listing.format == "folder"
        assert self.read(listing) == [png(100 + value) for value in range(3)]
        assert ids(listing) == ["a.parquet:0", "a.parquet:1", "a.parquet:2"]

    def test_bytes_and_paths_may_mix(self, pictures: Path) -> None:
        rows = [{"bytes": png(1), "path": "gone.png"}, {"bytes": None, "path": "img/2.png"}, {"bytes": png(3), "path": None}]
        listing = listed(write(pictures / "a.parquet", ["a", "b", "c"], pa.array(rows, IMAGE)))
        assert self.read(listing) == [png(1), png(102), png(3)]

    def test_rows_without_a_file_are_counted_by_reason(self, pictures: Path) -> None:
        paths = ["img/0.png", "img/9.png", None, "https://example.org/1.png?key=secret", "img", "a\0b"]
        rows = pa.array([{"bytes": None, "path": path} for path in paths], IMAGE)
        listing = listed(write(pictures / "a.parquet", list("abcdef"), rows))
        assert listing.dropped == {
            "path in a Parquet row without a file": 3,
            "Parquet row without an image": 1,
            "address in a Parquet row, which is not fetched": 1,
        }
        assert not [example for example in listing.examples.values() if "secret" in example]
        assert class_names(listing) == ["a"]

    def test_null_bytes_without_paths_are_counted(self, tmp_path: Path) -> None:
        listing = listed(write(tmp_path / "a.parquet", ["a", "b", "c"], [png(0), None, png(2)]))
        assert class_names(listing) == ["a", "c"]
        assert listing.dropped == {"Parquet row without an image": 1}

    @pytest.mark.parametrize("labeled", [True, False])
    def test_paths_without_any_file_are_refused(self, tmp_path: Path, labeled: bool) -> None:
        with pytest.raises(SourceError, match=r"paths and no bytes, and none of the files is there .*img/0\.png"):
            listed(write(tmp_path / "a.parquet", ["a"], ["img/0.png"]), labeled=labeled)


class TestPatterns:
    def test_patterns_and_paths_hold_in_a_bucket(self, s3: Any, bucket: str, tmp_path: Path) -> None:
        s3.put_object(Bucket=bucket, Key="d/x/img/0.png", Body=png(7))
        rows = pa.array(
            [{"bytes": None, "path": path} for path in ("img/0.png", f"s3://{bucket}/d/x/img/0.png", "gone.png")], IMAGE
        )
        for folder in ("x", "y"):
            source = write(tmp_path / f"{folder}.parquet", ["a", "b", "c"], rows)
            s3.put_object(Bucket=bucket, Key=f"d/{folder}/p.parquet", Body=Path(source).read_bytes())
        listing = listed(f"s3://{bucket}/d/*/p*.parquet")
        assert ids(listing) == ["x/p.parquet:0", "x/p.parquet:1", "y/p.parquet:1"]
        assert read_rows(listing.rows.table(), listing.format, listing.image_column) == [png(7)] * 3
        assert ids(listed(f"s3://{bucket}/d/**/*.parquet")) == ids(listing)

    def test_names_of_files_in_several_folders_do_not_clash(self, tmp_path: Path) -> None:
        for folder in ("x", "y"):
            write(tmp_path / folder / "part-0.parquet", ["a"])
        assert ids(listed(tmp_path / "*" / "part-*.parquet")) == ["x/part-0.parquet:0", "y/part-0.parquet:0"]

    def test_two_stars_stand_for_any_depth(self, tmp_path: Path) -> None:
        for folder in (".", "x", "x/y"):
            write(tmp_path / folder / "p.parquet", ["a"])
        assert ids(listed(tmp_path / "**" / "*.parquet")) == ["p.parquet:0", "x/p.parquet:0", "x/y/p.parquet:0"]

    def test_hidden_files_are_counted(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", ["a"])
        (tmp_path / "._a.parquet").write_bytes(b"Mac OS X")
        listing = listed(tmp_path / "*.parquet")
        assert len(listing) == 1
        assert sum(listing.dropped.values()) == 1

    def test_a_name_that_is_not_utf8_is_counted(self, tmp_path: Path) -> None:
        source = write(tmp_path / "a.parquet", ["a"])
        shutil.copy(source, os.fsencode(tmp_path) + b"/caf\xe9.parquet")
        assert listed(tmp_path / "*.parquet").dropped == {"a name that is not UTF-8": 1}

    def test_a_link_that_leads_nowhere_is_counted(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", ["a"])
        (tmp_path / "b.parquet").symlink_to("gone")
        assert listed(tmp_path / "*.parquet").dropped == {"a link that leads nowhere": 1}

    def test_a_folder_with_the_suffix_holds_one_table(self, tmp_path: Path) -> None:
        write(tmp_path / "table.parquet" / "part-0.parquet", ["a"])
        assert ids(listed(tmp_path / "table.parquet")) == ["part-0.parquet:0"]

    def test_a_folder_may_name_the_label(self, tmp_path: Path) -> None:
        for name in ("big%20cat", "dog", "__HIVE_DEFAULT_PARTITION__"):
            pq.write_table(pa.table({"image": [png(0)]}), _made(tmp_path / f"label={name}") / "p.parquet")
        listing = listed(tmp_path / "label=*" / "*.parquet")
        assert class_names(listing) == ["big cat", "dog"]
        assert sum(listing.dropped.values()) == 1

    @pytest.mark.parametrize(
        ("files", "pattern", "command"),
        [
            (["train-0", "test-0"], "*", r"--labeled '.*/train\*\.parquet' --test '.*/test\*\.parquet'"),
            (["train-0", "validation-0"], "*", r"--test '.*/validation\*\.parquet'"),
            (["data_train", "data_test"], "*", r"--labeled '.*/data_train\*\.parquet'"),
            (["train/0", "val/0"], "*/*", r"--labeled '.*/train/\*\.parquet' --test '.*/val/\*\.parquet'"),
            (["split=train/0", "split=test/0"], "**/*", r"--labeled '.*/split=train/\*\.parquet'"),
        ],
    )
    def test_several_splits_under_one_pattern_are_refused(
        self, tmp_path: Path, files: list[str], pattern: str, command: str
    ) -> None:
        for file in files:
            write(tmp_path / f"{file}.parquet", ["a"])
        with pytest.raises(SourceError, match=command):
            listed(tmp_path / f"{pattern}.parquet")
        assert len(listed(tmp_path / f"{pattern}.parquet", labeled=False)) == 2

    @pytest.mark.parametrize("files", [["train-0", "train-1"], ["trains", "contest"], ["label=train/0", "label=test/0"]])
    def test_other_names_are_no_splits(self, tmp_path: Path, files: list[str]) -> None:
        for file in files:
            write(tmp_path / f"{file}.parquet", ["a"])
        assert len(listed(tmp_path / "**" / "*.parquet")) == 2


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
