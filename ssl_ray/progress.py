"""How long work says that it will go on."""

from __future__ import annotations

import time

BEGAN = time.time()
"""When this process began to load the package: as good as when the job began."""


def duration(seconds: float) -> str:
    """A time that a person reads at a glance: "8 s", "3 min 20 s", "2 h 5 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(whole / 60), 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.1f} days"


def time_left(done: float, wanted: float, seconds: float) -> str:
    """What is left of some work at the pace so far; nothing is said before anything is done, and at the end."""
    if not 0 < done < wanted:
        return ""
    return f"  {duration(seconds * (wanted - done) / done)} left"
