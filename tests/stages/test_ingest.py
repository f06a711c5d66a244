from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssl_ray.artifacts import Corpus
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.errors import SourceError
from ssl_ray.scale import inline
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest

Make = Callable[..., Path]


@pytest.fixture
def split(tmp_path: Path, make_folder: Make) -> Callable[..., Corpus]:
    """Ingest folders of so many images per class: `split({"cat": 9, "dog": 3}, test_images=2)`."""

    def run(counts: dict[str, int], **settings: Any) -> Corpus:
        config = ImagesConfig(labeled=str(make_folder("labeled", counts)), needs_unlabeled=False, **settings)
        return Run(str(tmp_path / "root"), inline(), echo=lambda line: None)("images", ingest, config)

    return run


def counts_of(corpus: Corpus, part: str) -> dict[str, int]:
    return Counter(corpus.classes[label] for label in corpus.column(part, "label"))


class TestSplits:
    def test_the_fifth_for_testing_follows_the_shares(self, split: Callable[..., Corpus]) -> None:
        corpus = split({"cat": 50, "dog": 6})
        assert counts_of(corpus, "test") == {"cat": 10, "dog": 1}
        assert counts_of(corpus, "train") == {"cat": 40, "dog": 5}

    def test_a_class_of_one_image_stays_in_training_and_is_named(self, split: Callable[..., Corpus]) -> None:
        corpus = split({"cat": 20, "dog": 10, "yak": 1})
        assert counts_of(corpus, "train")["yak"] == 1
        assert corpus.results["not_in_test"] == {"yak": 1}
        assert "not in test: yak (1 labeled)" in corpus.results["summary"]

    def test_validation_images_follow_the_shares_and_leave_a_label(self, split: Callable[..., Corpus]) -> None:
        corpus = split({"cat": 20, "dog": 10, "yak": 2}, test_images=6, val_images=6)
        assert counts_of(corpus, "test") == {"cat": 3, "dog": 2, "yak": 1}
        assert counts_of(corpus, "val") == {"cat": 4, "dog": 2}
        assert counts_of(corpus, "train")["yak"] == 1

    def test_labels_are_equally_many_of_every_class(self, split: Callable[..., Corpus]) -> None:
        corpus = split({"cat": 20, "dog": 10, "yak": 1}, labels=9)
        assert counts_of(corpus, "train") == {"cat": 4, "dog": 4, "yak": 1}

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"test_images": 9}, r"images\.test_images=9 of 10 labeled images .*at most 8 can be taken.* 2 classes"),
            ({"test_images": 2, "val_images": 7}, r"images\.val_images=7 of 8 labeled images .*at most 6"),
            ({"test_images": 2, "val_images": 2, "labels": 7}, r"images\.labels=7 is more than the 6 .*of 10"),
        ],
    )
    def test_draws_that_do_not_fit_are_refused_with_numbers(
        self, split: Callable[..., Corpus], settings: dict[str, int], message: str
    ) -> None:
        with pytest.raises(SourceError, match=message):
            split({"cat": 5, "dog": 5}, **settings)

    def test_classes_of_one_image_leave_nothing_to_test_on(self, split: Callable[..., Corpus]) -> None:
        with pytest.raises(SourceError, match=r"no test images; give --test"):
            split(dict.fromkeys("abcdef", 1))


@pytest.mark.parametrize("kind", [{"task": "detection"}, {"several_labels": True}], ids=["boxes", "several labels"])
@pytest.mark.parametrize("draw", [{"test_images": 3}, {"test_images": 1, "labels": 2}], ids=["test", "labels"])
def test_every_class_of_boxes_stays_in_training(
    tmp_path: Path, make_folder: Make, kind: dict[str, Any], draw: dict[str, int]
) -> None:
    folder, count = make_folder("images", {"": 5}), 5
    images = [{"id": i, "file_name": f"{i}.png", "width": 20, "height": 16} for i in range(count)]
    shown = [(i, 1) for i in range(count)] + [(2, 2)]  # only one image shows the second class
    annotations = [
        {"id": n, "image_id": i, "category_id": c, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
        for n, (i, c) in enumerate(shown)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "yak"}]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    for seed in range(4):
        config = ImagesConfig(labeled=f"coco:{tmp_path}/coco.json@{folder}", needs_unlabeled=False, seed=seed, **kind, **draw)
        corpus = Run(str(tmp_path / f"root{seed}"), inline(), echo=lambda line: None)("images", ingest, config)
        assert corpus.results["per_class"]["yak"] == 1


def test_one_class_says_what_was_left_out(split: Callable[..., Corpus]) -> None:
    with pytest.raises(SourceError, match=r"1 class \(a\).*left out: 1 class folder without an image"):
        split({"a": 3, "b": 0})
