"""Setup of a job's signals and output, before the imports that take seconds. It imports the standard library only."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import shutil
import signal
import sys
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""Exit code of a job that was stopped by Ctrl-C or SIGTERM."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)

SECONDS = ("SSL_RAY_PATIENCE_S", "SSL_RAY_SILENCE_S", "SPOT_NOTICE_EVERY_S")
"""Environment variables that hold a number of seconds."""


def enter() -> None:
    """Prepare the process of a job for signals, and for output that is closed or cannot be written.

    Until `run_job` installs its own handler, a signal ends the process at once: the job holds no lock yet.
    """
    hear(_end_at_once)
    _check_environment()
    atexit.register(hear, signal.SIG_IGN)  # registered first, so it runs last: a signal must not change the exit code
    _open_missing()
    sys.stdout = Output(sys.stdout, "standard output")
    sys.stderr = Output(sys.stderr, "standard error")


def program() -> str:
    """Return how to call `ssl-ray` here: by its name if the PATH finds this environment's, else by its path or by Python."""
    own = os.path.join(os.path.dirname(sys.executable), "ssl-ray")
    found = shutil.which("ssl-ray")
    if found is not None and os.path.realpath(found) == os.path.realpath(own):
        return "ssl-ray"
    path, words = (own, "") if os.path.exists(own) else (sys.executable, " -m ssl_ray")
    relative = os.path.relpath(path)
    return (path if relative.startswith("..") else relative) + words


def hear(handler: Any) -> None:
    """Set the handler of Ctrl-C and SIGTERM, unless the parent process ignores them (`nohup`, background jobs)."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def say(line: str) -> None:
    """Write a line to standard error with one system call, which is safe in a signal handler."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="backslashreplace"))


def end_now(number: int, frame: FrameType | None) -> None:
    """End the process without cleaning up. Handles the third signal: the first stops the job, the second is ignored."""
    say("stopped at once; the same command goes on with what is saved")
    os._exit(INTERRUPTED)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    say("stopped before anything began")
    os._exit(INTERRUPTED)


def _check_environment() -> None:
    """Exit with one line if a variable that later imports read as a number is not one."""
    for variable in SECONDS:
        text = os.environ.get(variable)
        try:
            valid = text is None or 0 < float(text) < math.inf
        except ValueError:
            valid = False
        if not valid:
            say(f"{variable} is {ascii(text)[:60]}; give a number of seconds, or unset it")
            sys.exit(2)


def _open_missing() -> None:
    """Open the standard streams that the parent process closed.

    Otherwise the next file or socket would get the number of standard output, and printed lines would land in it.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


class Output:
    """A stream that may be closed or full. The job continues without it, because its results are under its root."""

    def __init__(self, stream: Any, title: str):
        self._stream, self._title = stream, title
        self.problem: OSError | None = None
        with contextlib.suppress(AttributeError, ValueError):  # a terminal may not be able to show every letter
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text, or drop it if it cannot be written."""
        try:
            return int(self._stream.write(text))
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """Write the buffered text, or drop it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # for buffered text, and for child processes
        os.close(nowhere)
        self.problem = self.problem or error
        if not isinstance(error, BrokenPipeError):  # `head` closes its end when it has enough
            say(f"{self._title} cannot be written ({error.strerror}); the job goes on without it")
