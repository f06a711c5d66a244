from __future__ import annotations

import statistics

import pytest

from benchmarks.noisy_student_gain import summarise
from benchmarks.record import interval
from benchmarks.tables import PAGES, REPO, rendered


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_in_the_docs_are_those_of_the_records(page: str) -> None:
    assert rendered(REPO / page) == (REPO / page).read_text(), "run make tables"


def test_intervals_are_student_s() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 6.0]
    mean, low, high = interval(values)
    assert mean == pytest.approx(3.2)
    assert high - mean == pytest.approx(mean - low) == pytest.approx(2.776 * statistics.stdev(values) / 5**0.5)


def test_gains_are_paired_by_seed() -> None:
    runs = [
        {"top1": {"teacher": t, "student-1": a, "student-2": b, "labels-only": 0.8}}
        for t, a, b in ((0.9, 0.95, 0.93), (0.8, 0.85, 0.9))
    ]
    gain = summarise(runs)["gain"]
    assert gain["student-1"][0] == pytest.approx(5.0)
    assert gain["best"][0] == pytest.approx(7.5)
    assert gain["over labels-only"][0] == pytest.approx(11.5)
