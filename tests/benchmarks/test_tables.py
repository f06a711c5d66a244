from __future__ import annotations

import statistics

import pytest

from benchmarks import self_training_gain
from benchmarks.noisy_student_gain import summarise
from benchmarks.record import interval, load
from benchmarks.self_training_gain import merged
from benchmarks.tables import PAGES, REPO, rendered
from benchmarks.tables_self_training import Cell, against
from ssl_ray.recipes.self_training import RECIPES, recipe


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_in_the_docs_are_those_of_the_records(page: str) -> None:
    assert rendered(REPO / page) == (REPO / page).read_text(), "run make tables"


def test_intervals_are_student_s() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 6.0]
    mean, low, high = interval(values)
    assert mean == pytest.approx(3.2)
    assert high - mean == pytest.approx(mean - low) == pytest.approx(2.776445 * statistics.stdev(values) / 5**0.5)


def test_gains_are_paired_by_seed() -> None:
    runs = [
        {"top1": {"teacher": t, "student-1": a, "student-2": b, "labels-only": 0.8}}
        for t, a, b in ((0.9, 0.95, 0.93), (0.8, 0.85, 0.9))
    ]
    gain = summarise(runs)["gain"]
    assert gain["student-1"][0] == pytest.approx(5.0)
    assert gain["best"][0] == pytest.approx(7.5)
    assert gain["over labels-only"][0] == pytest.approx(11.5)


class TestSelfTraining:
    @pytest.mark.parametrize(
        ("gains", "verdict"),
        [([1.0, 1.1, 0.9], "same sign"), ([-1.0, -1.1, -0.9], "other sign"), ([1.0, -1.1, 0.9], "open"), ([1.0], "open")],
    )
    def test_a_sign_needs_an_interval_without_zero(self, gains: list[float], verdict: str) -> None:
        base = Cell({}, dict.fromkeys(range(len(gains)), 30.0))
        cell = Cell({}, {seed: 30.0 + gain for seed, gain in enumerate(gains)})
        assert against(cell, base, paper=3.4).endswith(f"paper +3.4: {verdict}")

    @pytest.mark.parametrize("name", [name for name in RECIPES if load(f"self_training-{name}") is not None])
    def test_records_are_of_the_recipes(self, name: str) -> None:
        """What docs show is what the recipe of that name computes."""
        assert merged(name, recipe(name))

    def test_runs_with_other_settings_are_not_thrown_away(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wanted = recipe("miniature-table3")
        settings = wanted.model_dump(mode="json")
        record = {"settings": settings, "runs": [{"seed": 1}]}
        monkeypatch.setattr(self_training_gain, "load", lambda name: record)
        assert merged("miniature-table3", wanted) == {1: {"seed": 1}}
        del settings["teacher"]["head"]["anchor_scales"]  # a setting that came later, with its default
        assert merged("miniature-table3", wanted) == {1: {"seed": 1}}
        settings["teacher"]["batch"] += 1
        with pytest.raises(SystemExit, match="other settings; move it away"):
            merged("miniature-table3", wanted)
