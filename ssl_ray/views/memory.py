"""Limits on the memory of decoded pictures: per process, and for large pictures per machine."""

from __future__ import annotations

import fcntl
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path

SMALL_BYTES = 2**20
"""Decoded pictures smaller than this are not counted."""

LARGE_BYTES = 256 * 2**20
"""From this size on, decoded pictures need a slot of the machine, which all its processes share."""

SLOT_BYTES = 8 * 2**30
"""Memory of a machine per slot for a large picture."""


class ByteBudget:
    """Memory budget that the threads of a process share. A request that is larger than the budget runs alone."""

    def __init__(self, limit: int):
        self._limit, self._held = limit, 0
        self._turn, self._room = threading.Lock(), threading.Condition()

    @contextmanager
    def hold(self, num_bytes: int) -> Iterator[None]:
        """Wait for room and hold it. Requests are served in order, so that small ones cannot starve a large one."""
        size = min(num_bytes, self._limit)
        with self._turn, self._room:
            self._room.wait_for(lambda: self._held + size <= self._limit)
            self._held += size
        try:
            yield
        finally:
            with self._room:
                self._held -= size
                self._room.notify()


IN_FLIGHT = ByteBudget(2**30)
"""Budget for pictures that this process has decoded and not yet resized."""


def room_for(num_bytes: int) -> AbstractContextManager[None]:
    """Reserve memory for one decoded picture while it is in use."""
    if num_bytes < SMALL_BYTES:
        return nullcontext()
    return IN_FLIGHT.hold(num_bytes) if num_bytes < LARGE_BYTES else _room_on_machine(num_bytes)


@contextmanager
def _room_on_machine(num_bytes: int) -> Iterator[None]:
    with IN_FLIGHT.hold(num_bytes), _slot():
        yield


@contextmanager
def _slot() -> Iterator[None]:
    """Hold one of the machine's slots for large pictures, so that several workers cannot exhaust its memory.

    Slots are locked files, which the system unlocks when a process dies.
    """
    slots = max(1, memory_bytes() // SLOT_BYTES)
    paths = [Path(tempfile.gettempdir()) / f"ssl_ray-large-picture-{os.getuid()}-{slot}" for slot in range(slots)]
    files: list[int] = []
    try:
        with suppress(OSError):  # no writable folder: only the limit of this process holds
            files += [os.open(path, os.O_CREAT | os.O_RDWR, 0o600) for path in paths]
        for file in itertools.cycle(files):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if file == files[-1]:
                    time.sleep(0.02)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        for file in files:
            os.close(file)  # unlocks it


@lru_cache(maxsize=1)
def memory_bytes() -> int:
    """Return the memory of this machine or container, in bytes."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        found = min(found, int(text)) if text.isdecimal() else found
    return found
