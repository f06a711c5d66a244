"""A student that reads copied images sees what it would have seen at the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_ray.artifacts import Corpus, PseudoLabels, Selection
from ssl_ray.config import override
from ssl_ray.scale import Scale, inline
from ssl_ray.selection import SelectionConfig
from ssl_ray.stage import Run
from ssl_ray.stages.label import LabelConfig, label
from ssl_ray.stages.select import select
from ssl_ray.train.streams import make_streams
from tests.teachers import make_model

LOOSE = SelectionConfig(min_confidence=0.0, allow_empty_classes=True, per_class=100)


def student(**changes: Any) -> Any:
    from ssl_ray.recipes.noisy_student import tiny

    return override(tiny().student, changes)


@pytest.mark.parametrize("ray", [False, True])
def test_the_same_batches(ray: bool, ray_session: None, digits: Corpus, tmp_path: Path, scale: Scale) -> None:
    run = Run(str(tmp_path / "r"), scale if ray else inline(), echo=lambda line: None)
    labels: PseudoLabels = run("l", label, LabelConfig(), images=digits, model=make_model(tmp_path / "m", digits.classes))
    there: Selection = run("there", select, LOOSE, labels=labels)
    copied: Selection = run("copied", select, override(LOOSE, {"materialize": True}), labels=labels, images=digits)
    assert copied.copies.tolist() == there.copies.tolist()
    assert copied.results["materialized"] < 4500, "only what the student sees"
    batches = []
    for chosen in (there, copied):
        (_, stream) = make_streams(student(), digits, labels, chosen, rank=0, workers=1, scale=inline())
        batches.append([stream.batch(step) for step in range(3)])
    for (a, b), (c, d) in zip(*batches, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)


def test_a_restart_copies_what_is_missing(digits: Corpus, tmp_path: Path) -> None:
    run = Run(str(tmp_path / "r"), inline(), echo=lambda line: None)
    labels = run("l", label, LabelConfig(), images=digits, model=make_model(tmp_path / "m", digits.classes))
    config = override(LOOSE, {"materialize": True})
    first: Selection = run("c", select, config, labels=labels, images=digits)
    files = sorted((tmp_path / "r" / "c" / "images").iterdir())
    files[0].unlink()
    kept = files[1].stat().st_mtime_ns
    (tmp_path / "r" / "c" / "_record.json").unlink()
    second: Selection = run("c", select, config, labels=labels, images=digits)
    assert second.results["materialized"] == first.results["materialized"]
    assert files[1].stat().st_mtime_ns == kept
