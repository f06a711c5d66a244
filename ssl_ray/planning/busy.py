"""Whether this machine was busy with something else while samples were tried."""

from __future__ import annotations

import contextlib
import os
import time

TELLING = 0.25
"""Of a machine's cores: less of it, taken by others, is the rule (a desktop, a cluster's own daemons)."""


class Others:
    """What is not this process, nor a child that it waited for: from the moment that this is made.

    Linux only, where `/proc/stat` counts; elsewhere others take nothing, as far as anybody can say.
    """

    def __init__(self) -> None:
        self._began = _counted()

    def cores(self) -> float:
        """Cores that were busy without us, on average; on a virtual machine with those that its host gave to another."""
        elapsed, all_of_us, ours = (now - then for now, then in zip(_counted(), self._began, strict=True))
        return max(0.0, all_of_us - ours) / elapsed if elapsed > 0 else 0.0

    def warning(self) -> str | None:
        """For a reader, where it matters."""
        cores, have = self.cores(), os.cpu_count() or 1
        if cores < TELLING * have:
            return None
        return (
            f"Something else kept {cores:.1f} of this machine's {have} cores busy meanwhile: the times may be too long; plan "
            "again when it is done."
        )


def _counted() -> tuple[float, float, float]:
    """Seconds: of a clock, of all busy cores, of this process and its children."""
    us = os.times()
    busy = 0.0
    with contextlib.suppress(OSError, ValueError), open("/proc/stat") as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal = (int(word) for word in file.readline().split()[1:9])
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return time.monotonic(), busy, us.user + us.system + us.children_user + us.children_system
