"""Cores and memory that this process may use. In a container or a batch slot, they may be fewer than the host has."""

from __future__ import annotations

import functools
import itertools
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssl_ray.errors import ResourceError

ROOT = Path("/")
"""Where `proc` and `sys` are mounted."""


def usable_cores() -> int:
    """Count the cores that this process may use: those in its affinity mask, or fewer if a cgroup limits its CPU time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def usable_memory() -> int | None:
    """Return the bytes of memory of the host, or a lower limit set by a cgroup; None if neither is known."""
    try:
        limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, OSError, ValueError):
        limits = []
    for folder, version in _cgroups("memory"):
        text = _read(folder / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
        if text.isdigit() and int(text):
            limits.append(int(text))  # without a limit, version 1 holds a number larger than any memory
    return min(limits, default=None)


def check_memory(what: str, needed: float, remedy: str, limit: int | None = None) -> None:
    """Refuse an allocation before it is tried.

    Args:
        what: the thing to allocate, with its size.
        needed: bytes; a lower bound, so that nothing that fits is refused.
        remedy: the settings to change.
        limit: bytes; None: the memory of this process or of its largest GPU, whichever is larger.

    Raises:
        ResourceError: `needed` is above the limit.
    """
    limit = _largest_memory() if limit is None else limit
    if limit is not None and not needed <= limit:
        raise ResourceError(f"{what}: {_gib(needed)} of memory, and there are {_gib(limit)}; {remedy}")


def check_pixels(count: int, size: int, settings: str) -> None:
    """Refuse a batch whose pixels, as bytes and as float32, do not fit into memory.

    Raises:
        ResourceError: they do not fit; the message has the size and the limit.
    """
    check_memory(f"{count:,} images of {size:,} x {size:,} pixels at once", 15 * count * size * size, f"lower {settings}")


def check_dense(widths: Sequence[int], settings: str) -> None:
    """Refuse fully connected layers whose weights, as float32, do not fit into memory.

    Args:
        widths: number of input features, then of output features of every layer.

    Raises:
        ResourceError: they do not fit; the message has the size and the limit.
    """
    needed = 4 * sum(inputs * outputs for inputs, outputs in itertools.pairwise(widths))
    check_memory(f"fully connected layers of {', '.join(map(str, widths))} features", needed, f"lower {settings}")


@functools.cache
def _largest_memory() -> int | None:
    torch = sys.modules.get("torch")  # a process that has not loaded torch allocates nothing on a GPU
    memory = usable_memory()
    if memory is None or torch is None or not torch.cuda.is_available():
        return memory
    devices = (torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count()))
    return max([memory, *devices])


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size < 2**80 else "more than 2**80 bytes"


def use_threads(threads: int, setting: str) -> int:
    """Set the number of torch's threads in this process, at most one per usable core.

    Args:
        threads: requested number.
        setting: name of the setting that requests it, for the note if there are fewer cores.

    Returns:
        the number of threads that are used.
    """
    import torch

    cores = usable_cores()
    if threads > cores:
        print(f"note: {setting}={threads} is more than the cores that this process may use; {cores} are used", flush=True)
    torch.set_num_threads(min(threads, cores))
    return min(threads, cores)


def cpu_quota() -> float | None:
    """Return the CPU time that the cgroups (version 1 or 2) of this process allow, in cores; None if there is no limit."""
    quotas = []
    for folder, version in _cgroups("cpu"):
        if version == 2:
            quota, _, period = _read(folder / "cpu.max").partition(" ")
        else:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):  # "max" and -1 are no limit
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _cgroups(controller: str) -> Iterator[tuple[Path, int]]:
    """Yield the folders of the cgroups of this process and of all their parents, with the version of the interface.

    In a container the paths are often those of the host, and only the mounted root exists. `_read` returns "" for files that
    do not exist.
    """
    for line in _read(ROOT / "proc/self/cgroup").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if names and controller not in names.split(","):
            continue
        base = ROOT / "sys/fs/cgroup" / (controller if names else "")
        below = Path(path.lstrip("/"))
        for folder in (below, *below.parents):
            yield base / folder, 1 if names else 2


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
