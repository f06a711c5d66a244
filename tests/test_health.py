from __future__ import annotations

import pytest

from ssl_ray.errors import HealthError
from ssl_ray.health import HealthConfig, check_labels, check_precision, describe

CLASSES = ["cat", "dog", "eel"]


def test_one_class_swallows_nearly_all() -> None:
    found = describe(CLASSES, [98, 1, 1], 0.9, {"cat": 10, "dog": 10, "eel": 10})
    with pytest.raises(HealthError, match=r"98\.0% of the images .* 'cat' \(of people's labels 33%\)"):
        check_labels(found, HealthConfig())
    check_labels(found, HealthConfig(max_class_share=0.99))


def test_unless_the_labels_are_like_that_too() -> None:
    check_labels(describe(CLASSES, [98, 1, 1], 0.9, {"cat": 95, "dog": 4, "eel": 1}), HealthConfig())


def test_two_classes_and_all_images_in_one() -> None:
    with pytest.raises(HealthError, match=r"100\.0% of the images"):
        check_labels(describe(["a", "b"], [500, 0], 0.9, {"a": 60, "b": 40}), HealthConfig())


def test_healthy_labels_pass_and_are_described() -> None:
    found = describe(CLASSES, [50, 50, 0], 0.8, {"cat": 1, "dog": 1, "eel": 2})
    check_labels(found, HealthConfig())
    assert found["classes_without_labels"] == ["eel"]
    assert found["class_distance"] == pytest.approx(0.5)
    assert found["largest_share"] == 0.5


def test_hardly_ever_sure() -> None:
    with pytest.raises(HealthError, match=r"mean confidence is 0\.20"):
        check_labels(describe(CLASSES, [1, 1, 1], 0.2), HealthConfig(min_confidence=0.5))


@pytest.mark.parametrize(("precision", "count", "stops"), [(0.9, 50, False), (0.79, 50, True), (None, 0, True)])
def test_precision_on_held_out_images(precision: float | None, count: int, stops: bool) -> None:
    check_precision(precision, count, HealthConfig())
    if stops:
        with pytest.raises(HealthError):
            check_precision(precision, count, HealthConfig(min_precision=0.8))
    else:
        check_precision(precision, count, HealthConfig(min_precision=0.8))


def test_a_share_of_nothing_is_no_gate() -> None:
    with pytest.raises(ValueError, match=r"max_class_share[\s\S]*greater than 0"):
        HealthConfig(max_class_share=0)
