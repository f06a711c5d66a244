from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ssl_ray.commands import COMMANDS, module_of
from ssl_ray.entry import Output

REPO = Path(__file__).parent.parent
PROGRAM = "import sys; from ssl_ray.entry import enter; enter(); "


def child(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """A process that begins as a job does, without the imports that take seconds."""
    command = [sys.executable, "-c", PROGRAM + code, *arguments]
    return subprocess.Popen(command, cwd=REPO, env=os.environ | {"PYTHONPATH": str(REPO)}, text=True, **options)


class Broken:
    """A stream on a real file whose device is full, or whose reader is gone."""

    def __init__(self, file: Any, number: int):
        self.file, self.number = file, number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    flush = write

    def fileno(self) -> int:
        return int(self.file.fileno())


@pytest.mark.parametrize(("number", "lines"), [(errno.ENOSPC, 1), (errno.EPIPE, 0), (errno.EIO, 1)])
def test_a_stream_that_cannot_be_written_is_left_out(
    number: int, lines: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "x").open("w") as file:
        output = Output(Broken(file, number), "standard output")
        assert output.write("hello") == 5
        output.write("more")
        assert output.problem is not None
        assert output.problem.errno == number
    said = capfd.readouterr().err.splitlines()
    assert len(set(said)) == lines
    assert all("standard output cannot be written" in line for line in said)


def test_importing_a_pipeline_changes_nothing_in_the_process() -> None:
    before = signal.getsignal(signal.SIGTERM), sys.stdout
    for command in COMMANDS:
        module_of(command)
    assert (signal.getsignal(signal.SIGTERM), sys.stdout) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_ends_the_job_with_one_line(number: int) -> None:
    process = child(
        "print('ready', flush=True); import time; time.sleep(60)", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(2):
        process.send_signal(number)
        time.sleep(0.02)
    errors = process.communicate(timeout=20)[1]
    assert (process.returncode, errors) == (130, "stopped before anything began\n")


@pytest.mark.parametrize("text", ["soon", "", "nan", "-1"])
def test_seconds_of_the_environment_that_are_none_end_the_job_with_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_RAY_PATIENCE_S", text)
    process = child("import ssl_ray.storage", stderr=subprocess.PIPE)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == f"SSL_RAY_PATIENCE_S is {text!r}; give a number of seconds, or unset it\n"


def test_closed_streams_are_opened_on_nothing(tmp_path: Path) -> None:
    """Else the next file gets the number of standard output, and what is printed lands in it."""
    code = "file = open(sys.argv[1], 'w'); print('lost', flush=True); file.write('mine')"
    command = 'exec "$@" <&- >&- 2>&-'
    path = tmp_path / "x"
    arguments = ["sh", "-c", command, "sh", sys.executable, "-c", PROGRAM + code, str(path)]
    done = subprocess.run(arguments, cwd=REPO, env=os.environ | {"PYTHONPATH": str(REPO)}, check=False, timeout=20)
    assert done.returncode == 0
    assert path.read_text() == "mine"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_output_is_told_once_and_the_rest_of_the_job_runs(tmp_path: Path) -> None:
    code = "print('x' * 100_000, flush=True); print('y', flush=True); open(sys.argv[1], 'w').write('done')"
    with open("/dev/full", "w") as full:
        process = child(code, str(tmp_path / "x"), stdout=full, stderr=subprocess.PIPE)
        errors = process.communicate(timeout=20)[1]
    assert process.returncode == 0
    assert (tmp_path / "x").read_text() == "done"
    assert errors.count("standard output cannot be written (No space left on device)") == 1
    assert "Traceback" not in errors
