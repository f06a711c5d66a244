from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssl_ray import lock
from ssl_ray.errors import StorageError
from ssl_ray.storage import Folder

REPO = Path(__file__).parent.parent
HOLDER = "import sys, time; from ssl_ray.lock import hold; from ssl_ray.storage import Folder; hold(Folder(sys.argv[1])); print('held', flush=True); time.sleep(60)"


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that holds the root."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=REPO,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPO)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_two_jobs_on_one_root(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    with pytest.raises(StorageError, match=rf"another job is at work on .* \(process {other.pid} on .* since .*--root"):
        lock.hold(Folder(str(tmp_path)))
    other.send_signal(signal.SIGKILL)
    other.wait()
    time.sleep(0.1)
    assert lock.hold(Folder(str(tmp_path))) is not None, "a killed job leaves no lock behind"
    lock.release(Folder(str(tmp_path)))


def test_the_same_process_may_come_twice(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert lock.hold(folder) is lock.hold(folder)
    lock.release(folder)
    lock.release(folder)


@pytest.mark.parametrize("way", ["link", "other/../root", "deep/..", "root/./", "root//"])
def test_a_root_has_one_lock_by_whatever_way_it_is_named(tmp_path: Path, way: str) -> None:
    (tmp_path / "root/inner").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "root")
    (tmp_path / "deep").symlink_to(tmp_path / "root/inner")
    held = lock.hold(Folder(str(tmp_path / "root")))
    assert held is not None
    try:
        assert lock.hold(Folder(f"{tmp_path}/{way}")) is held
    finally:
        lock.release(Folder(f"{tmp_path}/{way}"))
    assert list(tmp_path.rglob("_lock.json")) == [tmp_path / "root/_lock.json"]


def test_a_folder_in_place_of_the_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / "_lock.json").mkdir()
    with pytest.raises(StorageError, match=r"_lock\.json is a folder.*--root"):
        lock.hold(Folder(str(tmp_path)))


def test_a_lock_of_another_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(StorageError, match=r"_lock\.json belongs to another user.*--root"):
        lock.hold(Folder(str(tmp_path)))


@pytest.mark.parametrize(
    "content", ["", "no JSON", "[" * 100_000, '{"pid": "x"}', '{"pid": 1e400}', "\0\xff"], ids=lambda text: ascii(text)[:20]
)
def test_any_content_of_a_lock_is_no_obstacle(tmp_path: Path, content: str) -> None:
    (tmp_path / "_lock.json").write_text(content, encoding="latin-1")
    assert lock.hold(Folder(str(tmp_path))) is not None
    lock.release(Folder(str(tmp_path)))
