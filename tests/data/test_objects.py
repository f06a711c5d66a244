"""Boxes and masks from COCO and VOC: read, checked, written and read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ssl_ray.artifacts import Corpus
from ssl_ray.data.formats import Labeled, coco, write_voc
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.data.sources.objects import list_objects
from ssl_ray.errors import ConfigError, SourceError
from ssl_ray.label_files import list_label_files
from ssl_ray.scale import inline
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest
from ssl_ray.storage import Folder
from ssl_ray.tasks import boxes, masks
from ssl_ray.tasks.boxes import Boxes
from ssl_ray.tasks.masks import IGNORE, Mask, to_png

SIZE = (40, 30)


def pictures(folder: Path, count: int = 10, size: tuple[int, int] = SIZE, seed: int = 0) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    names = [f"{index}.png" for index in range(count)]
    for name in names:
        Image.fromarray(draw.integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)).save(folder / name)
    return names


def coco_file(tmp_path: Path, **changes: Any) -> str:
    """Ten images: the first has two boxes, the second a crowd, the third none, the others one each."""
    names = pictures(tmp_path / "images")
    annotations: list[dict[str, Any]] = [
        {"image_id": 0, "category_id": 7, "bbox": [1, 2, 10, 12], "area": 90.0},
        {"image_id": 0, "category_id": 3, "bbox": [20, 5, 15, 20]},
        {"image_id": 1, "category_id": 3, "bbox": [0, 0, 30, 30], "iscrowd": 1},
        *({"image_id": index, "category_id": 3 + 4 * (index % 2), "bbox": [5, 5, 9, 9]} for index in range(3, 10)),
    ]
    content = {
        "images": [{"id": index, "file_name": name, "width": 40, "height": 30} for index, name in enumerate(names)],
        "annotations": [{"id": index, **item} for index, item in enumerate(annotations)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        **changes,
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return f"coco:{tmp_path}/instances.json@{tmp_path}/images"


def ingested(tmp_path: Path, source: str, **settings: Any) -> Corpus:
    run = Run(str(tmp_path / "root"), inline(), echo=lambda line: None)
    config = ImagesConfig(labeled=source, **{"task": "detection", "needs_unlabeled": False, "test_images": 2, **settings})
    return run("images", ingest, config)


def targets(images: Corpus, folder: Folder | None = None) -> dict[str, Any]:
    """What stands in every image, by id."""
    folder = folder or images.targets
    read: Any = boxes.rows_of if images.task == "detection" else masks.rows_of
    found: dict[str, Any] = {}
    for file in list_label_files(folder):
        table = folder.read_table(file.name)
        found |= dict(zip(table["image_id"].to_pylist(), read(table), strict=True))
    return found


class TestCOCO:
    def test_boxes_are_read_in_categories_by_number(self, tmp_path: Path) -> None:
        images = ingested(tmp_path, coco_file(tmp_path))
        assert images.classes == ["cat", "dog"]
        assert images.task == "detection"
        found = targets(images)
        assert len(found) == 10
        first = found["labeled/0.png"]
        assert first.boxes.tolist() == [[1, 2, 11, 14], [20, 5, 35, 25]]
        assert first.labels.tolist() == [1, 0]
        assert first.areas.tolist() == [90.0, 300.0]
        assert found["labeled/1.png"].ignore.tolist() == [True]

    def test_an_image_without_objects_stays_as_background(self, tmp_path: Path) -> None:
        assert len(targets(ingested(tmp_path, coco_file(tmp_path)))["labeled/2.png"]) == 0

    def test_hidden_labels_lie_where_training_does_not_look(self, tmp_path: Path) -> None:
        images = ingested(tmp_path, coco_file(tmp_path), labels=4)
        assert images.num_images("train") == 4
        assert images.num_images("unlabeled") == 4
        shown, hidden = targets(images), targets(images, images.truth)
        assert len(shown) == 6
        assert len(hidden) == 4
        assert not set(shown) & set(hidden)

    @pytest.mark.parametrize("text", ["image_id", "category_id"])
    def test_ids_written_as_text_and_as_numbers_are_the_same(self, text: str, tmp_path: Path) -> None:
        source = coco_file(tmp_path)
        file = tmp_path / "instances.json"
        content = json.loads(file.read_text())
        for item in content["annotations"][:4]:
            item[text] = str(item[text])
        file.write_text(json.dumps(content))
        found = targets(ingested(tmp_path, source))
        assert found["labeled/0.png"].labels.tolist() == [1, 0]
        assert found["labeled/1.png"].ignore.tolist() == [True]

    def test_a_category_without_objects_is_left_out_unless_it_is_asked_for(self, tmp_path: Path) -> None:
        categories = [{"id": 0, "name": "things"}, {"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
        images = ingested(tmp_path / "a", coco_file(tmp_path / "a", categories=categories))
        assert images.classes == ["cat", "dog"]
        assert "1 category without objects (things)" in images.results["summary"]
        source = coco_file(tmp_path / "b", categories=categories)
        images = ingested(tmp_path / "b", source, empty_categories=True)
        assert images.classes == ["things", "cat", "dog"]
        assert "no training image shows things" in images.results["summary"]

    def test_a_polygon_far_outside_its_image_is_cut_to_a_frame_around_it(self, tmp_path: Path) -> None:
        square = [5, 5, 15, 5, 15, 15, 5, 15]
        far = [10, 10, 1e12, 10, 1e12, 1e12, 10, 1e12]
        beyond = [1e9, 1e9, 2e9, 1e9, 2e9, 2e9]
        shapes = [square, far, beyond]
        annotations = [
            {"id": index, "image_id": index, "category_id": 3, "segmentation": [shapes[index % 3]]} for index in range(10)
        ]
        found = targets(ingested(tmp_path, coco_file(tmp_path, annotations=annotations), task="segmentation"))
        assert int(found["labeled/0.png"].classes.sum()) == 100
        assert found["labeled/1.png"].classes[10:, 10:].all()
        assert not found["labeled/1.png"].classes[:10].any()
        assert not found["labeled/2.png"].classes.any()

    def test_boxes_that_make_no_sense_are_counted(self, tmp_path: Path) -> None:
        bad = [
            {"id": 0, "image_id": 0, "category_id": 3, "bbox": [1, 1, -4, 5]},
            {"id": 1, "image_id": 0, "category_id": 3, "bbox": [1, 1, 0, 5]},
            {"id": 2, "image_id": 0, "category_id": 3, "bbox": [100, 1, 5, 5]},
            {"id": 3, "image_id": 0, "category_id": 3, "bbox": [30, 20, 30, 30]},
            *({"id": 4 + index, "image_id": index, "category_id": 7, "bbox": [5, 5, 9, 9]} for index in range(1, 10)),
        ]
        images = ingested(tmp_path, coco_file(tmp_path, annotations=bad))
        dropped = images.results["dropped"]
        assert dropped == {
            "box whose corners are reversed": 1,
            "box without an area": 1,
            "box outside its image": 1,
            "box cut to its image": 1,
        }
        assert targets(images)["labeled/0.png"].boxes.tolist() == [[30, 20, 40, 30]]
        assert "1 box outside its image" in images.results["summary"]

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"annotations": [{"id": 0, "image_id": 0, "category_id": 99, "bbox": [0, 0, 1, 1]}]}, "category 99"),
            ({"annotations": [{"id": 0, "image_id": 77, "category_id": 3, "bbox": [0, 0, 1, 1]}]}, "belongs to no image"),
            ({"annotations": [{"id": 0, "image_id": 0, "category_id": 3}]}, "has no bbox"),
            ({"categories": [], "annotations": []}, "names no categories"),
            ({"annotations": []}, "no labeled training image shows an object"),
            ({"images": [{"id": i, "file_name": f"{i}.png"} for i in range(10)]}, "lacks its width and height"),
            (
                {"images": [{"id": i, "file_name": f"{i}.png", "width": 400, "height": 300} for i in range(10)]},
                r"is 40 x 30 .* annotation is for 400 x 300",
            ),
            (
                {"images": [{"id": 0, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(10)]},
                "two of its images have the id 0",
            ),
            ({"categories": [{"id": 3, "name": "dog"}, {"id": 7, "name": "dog"}]}, "two of its categories have the name dog"),
            ({"categories": [{"id": 3}, {"id": 7, "name": "cat"}]}, "lacks or misuses 'name'"),
            ({"annotations": [{"id": 0, "image_id": 0, "category_id": 3, "bbox": [0, 0, "a", 1]}]}, "not four numbers"),
            (
                {"annotations": [{"id": 0, "image_id": 0, "category_id": 3, "bbox": [0, 0, 1, 1], "area": "1_0"}]},
                "the area of annotation 0 is '1_0'",
            ),
            ({"categories": [{"id": True, "name": "dog"}], "annotations": []}, "category is True, not a number"),
            (
                {"images": [{"id": i, "file_name": f"{i}.png", "width": 10**9, "height": 30} for i in range(10)]},
                "pixels are allowed",
            ),
            (
                {"annotations": [{"id": 0, "image_id": 0, "category_id": 3, "bbox": [0, 0, 1, 1], "iscrowd": "maybe"}]},
                "iscrowd of annotation 0 is 'maybe'; write 0 or 1",
            ),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(SourceError, match=words):
            ingested(tmp_path, coco_file(tmp_path, **changes))

    def test_boxes_of_an_image_that_its_tag_turns(self, tmp_path: Path) -> None:
        """Trainings see it upright, so its annotation has to be for that."""
        source = coco_file(tmp_path)
        upright = Image.new("RGB", (30, 40))
        tag = upright.getexif()
        tag[0x0112] = 6
        upright.save(tmp_path / "images" / "4.png", exif=tag)  # 40 x 30 once it is turned
        assert targets(ingested(tmp_path, source))["labeled/4.png"].size == (40, 30)
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / "4.png", exif=tag)
        with pytest.raises(SourceError, match="is 30 x 40"):
            list_and_ingest(tmp_path, source, None)

    @pytest.mark.parametrize("side", [True, None, "1_0", "x", float("nan"), float("inf"), 10**400])
    def test_what_is_no_number_is_no_side_of_a_box(self, tmp_path: Path, side: Any) -> None:
        annotations = [{"id": 0, "image_id": 0, "category_id": 3, "bbox": [0, 0, side, 1]}]
        with pytest.raises(SourceError, match=r"bbox of annotation 0 is .* not four numbers"):
            list_objects(coco_file(tmp_path, annotations=annotations), "detection")

    @pytest.mark.parametrize("content", ["[" * 200_000, '{"images": [' + "9" * 5000 + "]}"])
    def test_json_that_cannot_be_read_is_one_line_with_the_file(self, tmp_path: Path, content: str) -> None:
        source = coco_file(tmp_path)
        (tmp_path / "instances.json").write_text(content)
        with pytest.raises(SourceError, match=r"^[^\n]*instances\.json is not [^\n]*$"):
            list_objects(source, "detection")

    @pytest.mark.parametrize(
        ("flag", "is_crowd"), [("0", False), ("1", True), (0, False), (1, True), (False, False), (True, True)]
    )
    def test_text_and_numbers_mark_a_crowd(self, tmp_path: Path, flag: Any, is_crowd: bool) -> None:
        annotations = [
            {"id": 0, "image_id": 0, "category_id": 3, "bbox": [1, 1, 5, 5], "iscrowd": flag},
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5]},
        ]
        listing = list_objects(coco_file(tmp_path, annotations=annotations), "detection")
        assert listing.targets["0.png"]().crowd.tolist() == [is_crowd]
        assert sum(count for reason, count in listing.dropped.items() if "crowd" in reason) == is_crowd

    @pytest.mark.parametrize("task", ["detection", "segmentation"])
    def test_crowds_alone_leave_nothing_to_learn(self, tmp_path: Path, task: str) -> None:
        annotations = [{"id": 0, "image_id": 0, "category_id": 3, "bbox": [1, 1, 5, 5], "iscrowd": 1,
                        "segmentation": {"size": [30, 40], "counts": [0, 1200]}}]  # fmt: skip
        with pytest.raises(SourceError, match="all 1 objects are crowds"):
            ingested(tmp_path, coco_file(tmp_path, annotations=annotations), task=task)

    @pytest.mark.parametrize(
        ("shape", "words"),
        [
            ({"size": [10**6, 10**6], "counts": [10**12]}, "1000000 x 1000000, and its image"),
            ({"size": [30, 40], "counts": [0, 10**12]}, "cover 1000000000000 of 1200 pixels"),
            ({"size": [30, 40], "counts": [-5, 1205]}, "negative"),
            ({"size": [30, 40], "counts": "~~"}, "cannot be read"),
            ([[1, 2, 9, 2, float("nan"), 9]], "a corner is nan"),
        ],
    )
    def test_run_lengths_that_do_not_fit_are_refused(self, tmp_path: Path, shape: Any, words: str) -> None:
        annotations = [{"id": 0, "image_id": 0, "category_id": 3, "bbox": [1, 1, 5, 5], "segmentation": shape}]
        listing = list_objects(coco_file(tmp_path, annotations=annotations), "segmentation")
        with pytest.raises(SourceError, match=words):
            listing.targets["0.png"]()

    @pytest.mark.parametrize("polygon", [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]])
    def test_what_is_no_polygon_is_refused(self, tmp_path: Path, polygon: list[int]) -> None:
        annotations = [{"id": 0, "image_id": 0, "category_id": 3, "bbox": [0, 0, 4, 4], "segmentation": [polygon]}]
        with pytest.raises(SourceError, match="three corners or more"):
            ingested(tmp_path, coco_file(tmp_path, annotations=annotations), task="segmentation", test_images=1, val_images=8)

    def test_polygons_become_one_mask(self, tmp_path: Path) -> None:
        """The smaller thing lies on the larger one, and a crowd counts as none."""
        square = [[2, 2, 20, 2, 20, 20, 2, 20]]
        inner = [[6, 6, 12, 6, 12, 12, 6, 12]]
        annotations = [
            {"id": 0, "image_id": 0, "category_id": 3, "bbox": [6, 6, 6, 6], "area": 36, "segmentation": inner},
            {"id": 1, "image_id": 0, "category_id": 7, "bbox": [2, 2, 18, 18], "area": 324, "segmentation": square},
            {"id": 2, "image_id": 0, "category_id": 3, "bbox": [36, 0, 4, 30], "area": 120, "iscrowd": 1,
             "segmentation": {"size": [30, 40], "counts": [30 * 36, 30 * 4]}},
            *({"id": 3 + i, "image_id": i, "category_id": 3, "bbox": [2, 2, 18, 18], "area": 324, "segmentation": square} for i in range(1, 10)),
        ]  # fmt: skip
        images = ingested(tmp_path, coco_file(tmp_path, annotations=annotations), task="segmentation")
        assert images.classes == ["background", "cat", "dog"]
        mask = targets(images)["labeled/0.png"].classes
        assert mask.shape == (30, 40)
        assert mask[9, 9] == 1
        assert mask[4, 4] == mask[16, 16] == 2
        assert (mask[:, 36:] == IGNORE).all()
        assert mask[25, 10] == 0
        assert (mask == 2).sum() == pytest.approx(18 * 18 - 36, abs=20)

    def test_a_mask_of_another_size_is_refused(self, tmp_path: Path) -> None:
        annotations = [{"id": 0, "image_id": 0, "category_id": 3, "bbox": [0, 0, 4, 4], "area": 16,
                        "segmentation": {"size": [10, 10], "counts": [0, 100]}}]  # fmt: skip
        with pytest.raises(SourceError, match=r"is 10 x 10, and its image 0\.png 40 x 30"):
            ingested(tmp_path, coco_file(tmp_path, annotations=annotations), task="segmentation", test_images=1, val_images=8)


def voc_folder(tmp_path: Path, count: int = 8) -> Path:
    base = tmp_path / "VOC"
    names = pictures(base / "JPEGImages", count)
    said = [
        Labeled(
            name, Boxes(SIZE, np.array([[4, 3, 20, 22]], np.float32), np.array([index % 2], np.int32), np.ones(1, np.float32))
        )
        for index, name in enumerate(names)
    ]
    write_voc(Folder(str(base)), said, ["bus", "cat"])
    for index, name in enumerate(names):
        mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
        mask[3:22, 4:20] = 1 + index % 2
        mask[0] = IGNORE
        (base / "SegmentationClass").mkdir(exist_ok=True)
        (base / "SegmentationClass" / name).write_bytes(to_png(mask))
    (base / "classes.txt").write_text("background\nbus\ncat\n")
    return base


class TestVOC:
    @pytest.mark.parametrize(
        ("task", "reason"), [("detection", "annotation without an image"), ("segmentation", "mask without an image")]
    )
    def test_what_belongs_to_no_image_is_counted(self, task: str, reason: str, tmp_path: Path) -> None:
        base = voc_folder(tmp_path)
        (base / "JPEGImages/3.png").unlink()
        images = ingested(tmp_path, f"voc:{base}", task=task)
        assert images.results["dropped"][reason] == 1
        assert images.num_images("train") == 5

    @pytest.mark.parametrize("first", ["", "__ignore__\n"])
    def test_classes_of_masks_that_labelme_names(self, first: str, tmp_path: Path) -> None:
        base = voc_folder(tmp_path)
        (base / "classes.txt").unlink()
        (base / "class_names.txt").write_text(f"{first}_background_\nbus\ncat\n")
        assert ingested(tmp_path, f"voc:{base}", task="segmentation").classes == ["_background_", "bus", "cat"]

    def test_boxes(self, tmp_path: Path) -> None:
        images = ingested(tmp_path, f"voc:{voc_folder(tmp_path)}")
        assert images.classes == ["bus", "cat"]
        assert targets(images)["labeled/1.png"].boxes.tolist() == [[4, 3, 20, 22]]

    @pytest.mark.parametrize("task", ["detection", "segmentation"])
    def test_one_of_its_lists(self, tmp_path: Path, task: str) -> None:
        base = voc_folder(tmp_path)
        lists = base / "ImageSets" / ("Main" if task == "detection" else "Segmentation")
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("0\n1\n5\n4\n")
        (lists / "val.txt").write_text("2\n3\n")
        images = ingested(tmp_path, f"voc:{base}/@train", test=f"voc:{base}/@val", task=task)
        assert set(targets(images)) == {
            "labeled/0.png",
            "labeled/1.png",
            "labeled/4.png",
            "labeled/5.png",
            "test/2.png",
            "test/3.png",
        }
        with pytest.raises(SourceError, match=r"no other\.txt in ImageSets/Main or ImageSets/Segmentation or"):
            list_objects(f"voc:{base}/@other", task)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("before", "after", "words"),
        [
            ("<width>40", "<width>forty", "size/width is 'forty', not a number"),
            ("<width>40</width>", "", "size/width is missing"),
            ("<width>40", "<width>4_0", "size/width is '4_0', not a number"),
            ("<xmin>5", "<xmin>inf", "xmin is 'inf', not a number"),
            ("<width>40", "<width>4.5", "the width is 4.5, not a whole number"),
            ("<xmin>5</xmin>", "", "xmin is missing"),
            ("<name>bus</name>", "<name> </name>", "an object has no name"),
        ],
    )
    def test_broken_annotations_are_named(self, tmp_path: Path, before: str, after: str, words: str) -> None:
        base = voc_folder(tmp_path)
        file = base / "Annotations" / "0.xml"
        assert before in file.read_text()
        file.write_text(file.read_text().replace(before, after))
        with pytest.raises(SourceError, match=rf"0\.xml: {words}"):
            list_objects(f"voc:{base}", "detection")

    def test_difficult_objects_are_neither_found_nor_missed(self, tmp_path: Path) -> None:
        base = voc_folder(tmp_path)
        file = base / "Annotations" / "0.xml"
        file.write_text(file.read_text().replace("<difficult>0", "<difficult>1"))
        assert targets(ingested(tmp_path, f"voc:{base}"))["labeled/0.png"].ignore.tolist() == [True]

    def test_classes_keep_their_places(self, tmp_path: Path) -> None:
        """Also where some have no box, and the alphabet has another order."""
        names = ["zebra", "cat", "dog"]
        base = tmp_path / "VOC"
        labels = np.array([1], np.int32)
        there = Boxes(SIZE, np.array([[4, 3, 20, 22]], np.float32), labels, np.ones(1, np.float32))
        files = pictures(base / "JPEGImages", 4)
        write_voc(Folder(str(base)), [Labeled(name, there) for name in files], names)
        listing = list_objects(f"voc:{base}", "detection")
        assert listing.categories == names
        assert listing.targets["0.png"]().labels.tolist() == [1]
        write_voc(Folder(str(base)), [Labeled(name, there.taken(np.zeros(1, bool))) for name in files], names)
        assert list_objects(f"voc:{base}", "detection").categories == names
        (base / "box_classes.txt").write_text("zebra\ndog\n")
        write_voc(Folder(str(base)), [Labeled(files[0], there)], names)
        (base / "box_classes.txt").write_text("zebra\ndog\n")
        with pytest.raises(SourceError, match=r"class 'cat', which is not in box_classes\.txt"):
            list_objects(f"voc:{base}", "detection")

    @pytest.mark.parametrize("inner", ["", "<filename>0.jpg</filename>", "<filename>/home/me/0.png</filename>"])
    def test_an_image_has_the_name_of_its_annotation(self, tmp_path: Path, inner: str) -> None:
        """Whatever name and suffix a tool wrote inside."""
        base = voc_folder(tmp_path)
        file = base / "Annotations" / "0.xml"
        text = file.read_text()
        assert "<filename>0.png</filename>" in text
        file.write_text(text.replace("<filename>0.png</filename>", inner))
        listing = list_objects(f"voc:{base}", "detection")
        assert listing.targets["0.png"]().boxes.tolist() == [[4, 3, 20, 22]]
        assert "image without an annotation" not in listing.dropped

    def test_an_annotation_of_two_images_is_refused(self, tmp_path: Path) -> None:
        base = voc_folder(tmp_path)
        file = base / "Annotations" / "0.xml"
        file.write_text(file.read_text().replace("<filename>0.png", "<filename>1.png"))
        with pytest.raises(SourceError, match=r"has the name of 0\.png, and names 1\.png, which is there, too"):
            list_objects(f"voc:{base}", "detection")

    def test_an_annotation_outside_the_list_takes_no_image_of_it(self, tmp_path: Path) -> None:
        """Though it names one inside; its classes are known all the same."""
        base = voc_folder(tmp_path)
        (base / "box_classes.txt").unlink()
        (base / "ImageSets" / "Main").mkdir(parents=True)
        (base / "ImageSets" / "Main" / "train.txt").write_text("0\n2\n")
        other = base / "Annotations" / "5.xml"
        other.write_text(other.read_text().replace("<filename>5.png", "<filename>0.png").replace("<xmin>5", "<xmin>9"))
        listing = list_objects(f"voc:{base}/@train", "detection")
        assert set(listing.targets) == {"0.png", "2.png"}
        assert listing.targets["0.png"]().boxes.tolist() == [[4, 3, 20, 22]]
        assert listing.categories == ["bus", "cat"]  # the second stands outside alone

    @pytest.mark.parametrize("content", [b"<annotation>", b'<?xml version="1.0" encoding="x-none"?><annotation/>', b""])
    def test_a_damaged_annotation_matters_in_its_list_alone(self, tmp_path: Path, content: bytes) -> None:
        base = voc_folder(tmp_path)
        (base / "ImageSets" / "Main").mkdir(parents=True)
        (base / "ImageSets" / "Main" / "train.txt").write_text("0\n2\n")
        (base / "Annotations" / "5.xml").write_bytes(content)
        assert set(list_objects(f"voc:{base}/@train", "detection").targets) == {"0.png", "2.png"}
        with pytest.raises(SourceError, match=r"5\.xml is not XML"):
            list_objects(f"voc:{base}", "detection")

    def test_class_files_of_windows_are_read(self, tmp_path: Path) -> None:
        base = voc_folder(tmp_path)
        for name, content in (("box_classes.txt", "bus\r\ncat\r\n"), ("classes.txt", "background\r\nbus\r\ncat\r\n")):
            (base / name).write_text(content, encoding="utf-8-sig", newline="")
        assert list_objects(f"voc:{base}", "detection").categories == ["bus", "cat"]
        assert list_objects(f"voc:{base}", "segmentation").categories == ["background", "bus", "cat"]

    def test_an_annotation_of_another_name_goes_by_what_it_says(self, tmp_path: Path) -> None:
        base = voc_folder(tmp_path)
        file = base / "Annotations" / "0.xml"
        file.rename(file.with_name("first.xml"))
        assert "0.png" in list_objects(f"voc:{base}", "detection").targets

    def test_masks(self, tmp_path: Path) -> None:
        images = ingested(tmp_path, f"voc:{voc_folder(tmp_path)}", task="segmentation")
        assert images.classes == ["background", "bus", "cat"]
        mask = targets(images)["labeled/3.png"].classes
        assert np.unique(mask).tolist() == [0, 2, IGNORE]
        assert images.results["per_class"]["background"] > 0

    def test_masks_that_do_not_fit_are_refused(self, tmp_path: Path) -> None:
        base = voc_folder(tmp_path)
        (base / "SegmentationClass" / "2.png").write_bytes(to_png(np.zeros((5, 6), np.uint8)))
        with pytest.raises(SourceError, match=r"is 40 x 30 when upright, and its annotation is for 6 x 5; correct"):
            ingested(tmp_path, f"voc:{base}", task="segmentation")
        (base / "SegmentationClass" / "2.png").write_bytes(to_png(np.full((30, 40), 9, np.uint8)))
        with pytest.raises(SourceError, match="has the class 9, and there are 3"):
            ingested(tmp_path, f"voc:{base}", task="segmentation")

    def test_masks_of_black_and_white_are_refused(self, tmp_path: Path) -> None:
        base = voc_folder(tmp_path)
        (base / "classes.txt").write_text("background\nroad\n")
        for file in (base / "SegmentationClass").glob("*.png"):
            file.write_bytes(to_png(np.where(np.asarray(Image.open(file)) > 0, 255, 0).astype(np.uint8)))
        with pytest.raises(SourceError, match=r"no road; 255 means no class.*paint road with its own number"):
            ingested(tmp_path, f"voc:{base}", task="segmentation")

    @pytest.mark.parametrize(("task", "file"), [("segmentation", "classes.txt"), ("detection", "box_classes.txt")])
    def test_a_class_that_nothing_shows_is_named(self, tmp_path: Path, task: str, file: str) -> None:
        base = voc_folder(tmp_path)
        with (base / file).open("a") as stream:
            stream.write("\ntram\n")
        assert "no training image shows tram" in ingested(tmp_path, f"voc:{base}", task=task).results["summary"]

    def test_images_without_a_mask_are_not_labeled(self, tmp_path: Path) -> None:
        """As most of VOC's: they are left out, and counted."""
        base = voc_folder(tmp_path)
        (base / "SegmentationClass" / "2.png").unlink()
        images = ingested(tmp_path, f"voc:{base}", task="segmentation")
        assert len(targets(images)) == 7
        assert images.results["dropped"] == {"image without an annotation": 1}
        assert images.results["dropped_examples"] == {"image without an annotation": "2.png"}
        for file in (base / "SegmentationClass").glob("*.png"):
            file.rename(file.with_name(f"other{file.name}"))
        with pytest.raises(SourceError, match="no image has an annotation"):
            list_objects(f"voc:{base}", "segmentation")


class TestSources:
    @pytest.mark.parametrize("source", ["folder/", "sample:mnist5k"])
    def test_what_holds_no_boxes_is_refused(self, tmp_path: Path, source: str) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(SourceError, match=r"no boxes or masks"):
            ingested(tmp_path, source if ":" in source else str(tmp_path / source))

    def test_scenes_are_no_classes(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"set images\.task=detection"):
            ingested(tmp_path, "sample:scenes-few", task="classification")

    def test_several_labels_belong_to_classes(self) -> None:
        with pytest.raises(ValueError, match="several_labels belongs to"):
            ImagesConfig(task="detection", several_labels=True)

    def test_test_images_in_other_categories(self, tmp_path: Path) -> None:
        """Other numbers of the same names are brought together; other names are refused."""
        source = coco_file(tmp_path)
        other = tmp_path / "other"
        other.mkdir()
        names = pictures(other / "images", 3, seed=5)
        content = {
            "images": [{"id": index, "file_name": name, "width": 40, "height": 30} for index, name in enumerate(names)],
            "annotations": [{"id": 0, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
            "categories": [{"id": 1, "name": "dog"}],
        }
        (other / "instances.json").write_text(json.dumps(content))
        images = ingested(tmp_path, source, test=f"coco:{other}/instances.json@{other}/images")
        assert targets(images)["test/1.png"].labels.tolist() == [1]
        content["categories"] = [{"id": 1, "name": "wolf"}]
        (other / "instances.json").write_text(json.dumps(content))
        with pytest.raises(SourceError, match="categories that the labeled ones have not: wolf"):
            list_and_ingest(tmp_path, source, f"coco:{other}/instances.json@{other}/images")


def list_and_ingest(tmp_path: Path, source: str, test: str) -> None:
    run = Run(str(tmp_path / "second"), inline(), echo=lambda line: None)
    run("images", ingest, ImagesConfig(task="detection", labeled=source, test=test, needs_unlabeled=False))


class TestWriting:
    def test_coco_comes_back(self, tmp_path: Path) -> None:
        names = pictures(tmp_path / "images", 3)
        draw = np.random.default_rng(0)
        said = []
        for index, name in enumerate(names):
            corner = draw.uniform(0, 15, (index, 2))
            found = np.concatenate([corner, corner + draw.uniform(2, 14, (index, 2))], axis=1).astype(np.float32)
            labels = draw.integers(0, 2, index).astype(np.int32)
            said.append(Labeled(name, Boxes(SIZE, found, labels, draw.random(index).astype(np.float32))))
        (tmp_path / "out.json").write_bytes(coco(said, ["cat", "dog"]))
        listing = list_objects(f"coco:{tmp_path}/out.json@{tmp_path}/images", "detection")
        assert listing.categories == ["cat", "dog"]
        for item in said:
            back = listing.targets[item.file_name]()
            assert isinstance(item.found, Boxes)
            np.testing.assert_allclose(back.boxes, item.found.boxes, atol=0.011)
            assert back.labels.tolist() == item.found.labels.tolist()
        scores = [round(float(score), 4) for item in said for score in item.found.scores]  # type: ignore[union-attr]
        assert [entry["score"] for entry in json.loads((tmp_path / "out.json").read_text())["annotations"]] == scores

    def test_voc_comes_back(self, tmp_path: Path) -> None:
        base = voc_folder(tmp_path)
        listing = list_objects(f"voc:{base}", "detection")
        assert listing.targets["5.png"]().boxes.tolist() == [[4, 3, 20, 22]]
        root = ElementTree.fromstring((base / "Annotations" / "5.xml").read_text())
        assert root.findtext("object/bndbox/xmin") == "5"  # counted from one
        assert root.findtext("object/bndbox/xmax") == "20"

    def test_masks_come_back(self, tmp_path: Path) -> None:
        pictures(tmp_path / "VOC" / "JPEGImages", 2)
        pixels = np.random.default_rng(0).integers(0, 3, (30, 40)).astype(np.uint8)
        count = write_voc(
            Folder(str(tmp_path / "VOC")), [Labeled(f"{i}.png", Mask(pixels)) for i in range(2)], ["background", "a", "b"]
        )
        assert count == 2
        listing = list_objects(f"voc:{tmp_path}/VOC", "segmentation")
        assert listing.categories == ["background", "a", "b"]
        np.testing.assert_array_equal(listing.targets["1.png"]().classes, pixels)


def test_scenes_are_the_same_everywhere_and_hold_what_they_say() -> None:
    from ssl_ray.samples import scenes_digits

    first, again = scenes_digits(24), scenes_digits(12)
    np.testing.assert_array_equal(first.train.images[:12], again.train.images)
    for image, found, labels, mask in zip(
        first.train.images, first.train.boxes, first.train.labels, first.train.masks, strict=True
    ):
        assert 1 <= len(found) <= 6
        assert image.shape == (96, 96, 3)
        assert set(np.unique(mask)) <= {0, *(labels + 1)}
        for corners, label in zip(found.astype(int), labels, strict=True):
            left, top, right, bottom = corners
            inside = mask[top:bottom, left:right]
            assert (inside == label + 1).any()
            # Tight: the thing reaches all four sides, unless another one lies on it.
            whole = [inside[0], inside[-1], inside[:, 0], inside[:, -1]]
            assert sum(bool((side > 0).any()) for side in whole) >= 3
    hidden = {tuple(glyph.shape) for glyph in first.test.images}
    assert hidden == {(96, 96, 3)}


def test_an_unknown_task_is_named() -> None:
    with pytest.raises((ValueError, ConfigError), match="task"):
        ImagesConfig(task="boxes")  # type: ignore[arg-type]


def test_targets_are_columns(tmp_path: Path) -> None:
    """Any Parquet reader opens them."""
    images = ingested(tmp_path, coco_file(tmp_path))
    [file] = [file for file in list_label_files(images.targets) if file.shard == images.shards("train")[0].shard]
    table = images.targets.read_table(file.name)
    assert table.schema.field("boxes").type == pa.list_(pa.list_(pa.float32(), 4))
