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
