from __future__ import annotations

import os
import re
from pathlib import Path

import pyarrow as pa
import pytest

from ssl_ray.errors import StorageError
from ssl_ray.storage import Folder, problem_of, resolve


def test_files_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(str(tmp_path / "a"))
    folder.write_json("x.json", {"v": 1})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.write_json("x.json", {"v": 2})
    monkeypatch.undo()
    assert folder.read_json("x.json") == {"v": 1}
    assert folder.names() == ["x.json"]


def test_tables_and_names(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path)) / "sub/deep"
    assert folder.names() == []
    table = pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"]})
    folder.write_table("t.parquet", table, row_group_size=2)
    assert folder.read_table("t.parquet", ["b"]).to_pydict() == {"b": ["x", "y", "z"]}
    (tmp_path / "sub/deep/.tmp-left-over").write_text("")
    assert folder.names(".parquet") == ["t.parquet"]
    folder.delete(last="t.parquet")
    assert not folder.holds_more_than("")


def test_an_unwritable_root_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="--root"):
        Folder(str(tmp_path / "file" / "root")).ensure_writable()


def test_an_unknown_scheme_says_what_is_allowed() -> None:
    with pytest.raises(StorageError, match="s3://"):
        Folder("gopher://x/y").exists()


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("gs://bucket/x", "gs:// cannot be read"),
        ("wds:gs://bucket/x.tar", "gs:// cannot be read"),
        ("coco:a.json@https://host/x", "https:// cannot be read"),
        ("S3://bucket/x", "S3:// cannot be read"),
        ("file:///data", "leave file:// out"),
        ("x/gs://y", "x/gs:// cannot be read"),
        ("s3:/bucket/x", "two slashes"),
        ("", "is empty"),
        (" ", "is empty"),
        ("caf\udce9", r"caf\xe9: the path is not UTF-8"),
        ("a\0b", r"a\x00b: the path is not UTF-8, or holds a zero byte"),
    ],
)
def test_a_path_that_cannot_be_served_is_refused(path: str, problem: str) -> None:
    assert problem in problem_of(path)
    if not path.startswith(("wds:", "coco:")):
        with pytest.raises(StorageError, match=re.escape(problem)):
            resolve(path)


@pytest.mark.parametrize(
    "path", ["a:b/c", "s3://bucket/x", "coco:s3://b/x.json@s3://b/x/", "wds:/x/{0..1}.tar", "http:x", "café/ｘ"]
)
def test_other_paths_are_left_alone(path: str) -> None:
    assert not problem_of(path)
