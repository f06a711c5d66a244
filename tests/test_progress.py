"""Times for people."""

from __future__ import annotations

import pytest

from ssl_ray.progress import duration, time_left


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (599, "9 min 59 s"),
        (3569, "59 min"),
        (3590, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (3 * 86400, "3.0 days"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_what_is_left_follows_the_pace() -> None:
    assert time_left(25, 100, 10) == "  30 s left"
    assert time_left(0, 100, 10) == ""
    assert time_left(100, 100, 10) == ""
