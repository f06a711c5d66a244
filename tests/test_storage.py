from __future__ import annotations

import math
import os
import re
import time
from pathlib import Path

import pyarrow as pa
import pytest

from ssl_ray import filesystems
from ssl_ray.errors import StorageError
from ssl_ray.filesystems import PATIENCE_S, patient, real_path, resolve
from ssl_ray.paths import problem_of
from ssl_ray.storage import Folder


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


@pytest.mark.parametrize("path", ["s3://", "s3:///x", "s3://../x", "s3://b/../../x", "s3://b ucket/x", "s3://b/../c/x"])
def test_a_path_on_s3_names_its_bucket(path: str) -> None:
    with pytest.raises(StorageError, match="bucket"):
        resolve(path)


@pytest.mark.parametrize("way", ["s3://bucket/a/b", "s3://bucket/a/b/", "s3://bucket//a/./b", "s3://bucket/a/c/../b"])
def test_a_place_on_s3_has_one_name(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert real_path(way) == "s3://bucket/a/b"


def test_two_dots_behind_a_link_lead_to_the_folder_above_its_target(tmp_path: Path) -> None:
    (tmp_path / "target/inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "target/inner")
    assert resolve(f"{tmp_path}/link/../x")[1] == str(tmp_path / "target/x")
    assert resolve(f"{tmp_path}/link/x")[1] == str(tmp_path / "link/x")


@pytest.mark.parametrize("path", ["x" * 5000, "/" + "x/" * 2500], ids=["name", "folders"])
def test_a_path_that_is_too_long_is_one_short_line(path: str) -> None:
    with pytest.raises(StorageError, match=r"bytes is longer than.*--root") as error:
        Folder(path).ensure_writable()
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize("name", ["file", "file/below/it"])
def test_a_file_in_place_of_a_root_is_named(name: str, dry: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="/file: a file stands where a folder is needed"):
        Folder(str(tmp_path / name)).ensure_writable(dry)


def test_a_dry_check_of_a_root_writes_nothing(tmp_path: Path) -> None:
    Folder(str(tmp_path / "a" / "b")).ensure_writable(dry=True)
    assert not list(tmp_path.iterdir())


class Clock:
    """A clock that only sleeping and slow servers move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)
        monkeypatch.setattr(filesystems, "_told_at", -math.inf)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("try_s", [0.0, 16.0, 50.0])
def test_a_server_that_nobody_runs_is_given_up_within_two_minutes(
    try_s: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:Pa55word@host:9")

    def nobody() -> None:
        clock.sleep(try_s)
        raise OSError("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect")

    with pytest.raises(StorageError, match=r"s3://b/x: the server \(http://\*\*\*@host:9\) does not answer"):
        patient("s3://b/x", nobody)
    assert 60 < clock.now - 1000 <= PATIENCE_S
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "waiting up to 120 s for it" in said
    assert "Pa55word" not in said


def test_a_short_failure_is_not_worth_a_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Clock(monkeypatch)
    answers = iter([OSError("curlCode: 7"), OSError("SLOW_DOWN"), None])

    def shaky() -> str:
        if (answer := next(answers)) is not None:
            raise answer
        return "there"

    assert patient("s3://b/x", shaky) == "there"
    assert capsys.readouterr().err == ""
