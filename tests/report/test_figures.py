from __future__ import annotations

import pytest

from ssl_ray.report.figures import accuracy


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("count", [1, 4, 8, 1000])
def test_accuracy_at_its_ends(value: float, count: int) -> None:
    """The upper bound of 100 % is 100 %, up to rounding."""
    assert "<svg" in accuracy(["teacher", "student-1"], [value, value], [count, count])
