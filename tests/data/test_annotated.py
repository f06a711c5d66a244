"""COCO and VOC as sources of images: what is named must be there, and stay in its folder."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ssl_ray.artifacts import Corpus
from ssl_ray.data.sources import ColumnsConfig, ImagesConfig, list_labeled, list_source
from ssl_ray.data.sources.annotated import UNNAMED, list_voc
from ssl_ray.data.sources.listing import LEFTOVER, Listing
from ssl_ray.data.sources.walk import ODD_NAME
from ssl_ray.errors import SourceError
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest

Make = Callable[..., Path]


@pytest.fixture
def corpus(quiet_run: Run, make_folder: Make) -> Callable[[str], Corpus]:
    labeled = str(make_folder("train", {"a": 10, "b": 10}))
    return lambda source: quiet_run("images", ingest, ImagesConfig(labeled=labeled, unlabeled=source))


@pytest.fixture
def coco(tmp_path: Path, make_folder: Make) -> Callable[..., str]:
    folder = make_folder("scenes", {"": 4, "more": 2}, size=(20, 16))

    def write(**changes: Any) -> str:
        names = ["0.png", "1.png", "2.png", "3.png", "more/0.png"]
        content: dict[str, Any] = {
            "images": [{"id": i, "file_name": name, "width": 20, "height": 16} for i, name in enumerate(names)],
            "annotations": [{"id": 7, "image_id": 0, "category_id": 1, "bbox": [1, 2, 10, 10]}],
            "categories": [{"id": 1, "name": "thing"}],
        }
        content |= changes
        (tmp_path / "instances.json").write_text(json.dumps(content))
        return f"coco:{tmp_path}/instances.json@{folder}/"

    return write


def test_the_images_that_the_file_names(corpus: Callable[[str], Corpus], coco: Callable[..., str]) -> None:
    images = corpus(coco())
    ids = [name for shard in images.shards("unlabeled") for name in images.rows(shard.shard)["image_id"].to_pylist()]
    assert sorted(ids) == [f"unlabeled/{name}" for name in ("0.png", "1.png", "2.png", "3.png", "more/0.png")]


def test_a_file_that_is_not_there_is_counted(corpus: Callable[[str], Corpus], coco: Callable[..., str]) -> None:
    images = corpus(coco(images=[{"id": 0, "file_name": "0.png"}, {"id": 1, "file_name": "gone.png"}]))
    assert images.num_images("unlabeled") == 1
    assert images.results["dropped"] == {"named in the annotations, but not there": 1, UNNAMED: 5}
    assert images.results["dropped_examples"]["named in the annotations, but not there"] == "gone.png"


def test_a_box_outside_its_image_is_counted(corpus: Callable[[str], Corpus], coco: Callable[..., str]) -> None:
    images = corpus(coco(annotations=[{"id": 9, "image_id": 1, "category_id": 1, "bbox": [15, 2, 10, 10]}]))
    assert images.results["dropped"] == {"a box outside its image": 1, UNNAMED: 1}
    assert "1.png (annotation 9)" in images.results["dropped_examples"].values()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"annotations": [{"id": 3, "image_id": 0, "category_id": 8, "bbox": [0, 0, 1, 1]}]},
            "annotation 3 names the category 8",
        ),
        (
            {"annotations": [{"id": 3, "image_id": 99, "category_id": 1, "bbox": [0, 0, 1, 1]}]},
            "annotation 3 belongs to no image",
        ),
        ({"images": [{"id": 0, "file_name": "../secret.png"}], "annotations": []}, "leaves the folder"),
        ({"images": [{"id": 0, "file_name": "/etc/passwd"}], "annotations": []}, "leaves the folder"),
        ({"images": [{"id": 0, "file_name": "s3://other/x.png"}], "annotations": []}, "leaves the folder"),
        (
            {"images": [{"id": 0, "file_name": "0.png"}, {"id": 1, "file_name": "0.png"}], "annotations": []},
            "0.png for two images",
        ),
        ({"images": [{"id": 0, "file_name": "none.png"}], "annotations": []}, "none of its images"),
        ({"images": [{"id": 0}], "annotations": []}, "is not COCO"),
        ({"images": None}, "no list `images`"),
    ],
    ids=["category", "image", "up", "absolute", "scheme", "twice", "all missing", "no name", "no list"],
)
def test_bad_coco(corpus: Callable[[str], Corpus], coco: Callable[..., str], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        corpus(coco(**changes))


def test_a_folder_that_is_not_there_is_named(corpus: Callable[[str], Corpus], coco: Callable[..., str]) -> None:
    source = coco().rpartition("@")[0] + "@elsewhere/"
    with pytest.raises(SourceError, match=r"the folder elsewhere/ of coco:.* does not exist"):
        corpus(source)


@pytest.mark.parametrize("bbox", ["1,2,3,4", [1, 2, 3], None, [1, 2, "x", 4]])
def test_a_box_of_other_than_four_numbers_is_named(
    corpus: Callable[[str], Corpus], coco: Callable[..., str], bbox: object
) -> None:
    source = coco(annotations=[{"id": 9, "image_id": 1, "category_id": 1, "bbox": bbox}])
    with pytest.raises(SourceError, match=r"the bbox of annotation 9 is .*, not four numbers"):
        corpus(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("coco:instances.json", "lacks @ and the folder of the images"),
        ("coco:instances.json@", "lacks the folder of the images"),
        ("coco:@photos/", "lacks the JSON file before the @"),
    ],
)
def test_the_half_of_a_source_that_is_missing_is_named(corpus: Callable[[str], Corpus], source: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        corpus(source)


def test_boxes_are_no_labels(quiet_run: Run, coco: Callable[..., str]) -> None:
    with pytest.raises(SourceError, match="boxes, not one class"):
        quiet_run("images", ingest, ImagesConfig(labeled=coco()))


class TestVoc:
    @pytest.fixture
    def voc(self, tmp_path: Path, make_folder: Make) -> Path:
        make_folder("VOC2012/JPEGImages", {"": 5})
        (tmp_path / "VOC2012" / "Annotations").mkdir()
        return tmp_path / "VOC2012"

    def annotate(self, voc: Path, name: str, xmax: int) -> None:
        (voc / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><size><width>20</width><height>16</height></size><object><name>x</name><bndbox><xmin>1</xmin>"
            f"<ymin>1</ymin><xmax>{xmax}</xmax><ymax>9</ymax></bndbox></object></annotation>"
        )

    def test_images_and_boxes(self, corpus: Callable[[str], Corpus], voc: Path) -> None:
        self.annotate(voc, "0", 10)
        self.annotate(voc, "1", 99)
        images = corpus(f"voc:{voc}/")
        assert images.num_images("unlabeled") == 5
        assert images.results["dropped"] == {"a box outside its image": 1}

    def test_leftovers_beside_annotations_and_images_are_counted(self, corpus: Callable[[str], Corpus], voc: Path) -> None:
        self.annotate(voc, "0", xmax=10)
        for name in ("Annotations/._0.xml", "Annotations/.ipynb_checkpoints/0-checkpoint.xml", "JPEGImages/._0.png"):
            (voc / name).parent.mkdir(exist_ok=True)
            (voc / name).write_bytes(b"\0\5\26\7")
        (voc / "Annotations" / os.fsdecode(b"caf\xe9.xml")).write_bytes(b"")
        assert corpus(f"voc:{voc}/").results["dropped"] == {LEFTOVER: 3, ODD_NAME: 1}

    def test_a_broken_annotation(self, corpus: Callable[[str], Corpus], voc: Path) -> None:
        (voc / "Annotations" / "0.xml").write_text("<annotation>")
        with pytest.raises(SourceError, match=r"0\.xml is not XML"):
            corpus(f"voc:{voc}")

    def test_no_such_folder(self, corpus: Callable[[str], Corpus], tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="JPEGImages"):
            corpus(f"voc:{tmp_path}/nowhere/")


@pytest.fixture
def voc(tmp_path: Path, make_folder: Make) -> Callable[..., str]:
    """Write a list of four images: 0, 1, `my cat` and `my cat 1`."""
    folder = make_folder("VOC/JPEGImages", {"": 2})
    for name in ("my cat", "my cat 1"):
        (folder / f"{name}.png").write_bytes((folder / "0.png").read_bytes())

    def write(content: bytes, kind: str = "Main") -> str:
        lists = tmp_path / "VOC" / "ImageSets" / kind
        lists.mkdir(parents=True, exist_ok=True)
        (lists / "train.txt").write_bytes(content)
        return f"voc:{folder.parent}/@train"

    return write


def taken(listing: Listing) -> list[str]:
    return sorted(listing.rows.table()["image_id"].to_pylist())


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("0 -1", "0"),
        ("0  1", "0"),
        ("0.png", "0"),
        ("0.PNG 1", "0"),
        ("my cat", "my cat"),
        ("my cat 0", "my cat"),
        ("my cat 1",) * 2,
        ("JPEGImages/0.png", "0"),
        ("/JPEGImages/my cat.png /SegmentationClassAug/my cat.png", "my cat"),
    ],
)
def test_a_line_of_a_list_finds_its_image(voc: Callable[..., str], line: str, name: str) -> None:
    assert taken(list_voc(voc(line.encode()), labeled=False)) == [f"{name}.png"]


def test_names_of_a_list_that_are_not_there_are_counted(voc: Callable[..., str]) -> None:
    listing = list_voc(voc(b"0\n8 1\n9\n"), labeled=False)
    assert listing.dropped == {"named in a list and not there": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"0\n\xff\n", r"train\.txt is not UTF-8 \(byte 3\)"),
        (b"\n", "names no image"),
        (b"8\n", r"no image that .*train\.txt names is in JPEGImages"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(voc: Callable[..., str], content: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        list_voc(voc(content), labeled=False)


@pytest.mark.parametrize("kind", ["Main", "Segmentation", "Layout"])
@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_a_list_of_any_task_is_found(voc: Callable[..., str], kind: str, task: str) -> None:
    assert taken(list_source(voc(b"1", kind), ColumnsConfig(), labeled=False, task=task)) == ["1.png"]


@pytest.mark.parametrize(("task", "name"), [("detection", "0.png"), ("segmentation", "1.png")])
def test_the_list_of_the_task_comes_first(voc: Callable[..., str], task: str, name: str) -> None:
    voc(b"0", "Main")
    assert taken(list_source(voc(b"1", "Segmentation"), ColumnsConfig(), labeled=False, task=task)) == [name]


@pytest.mark.parametrize(("on_disk", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
class TestNamesThatLookAlike:
    """A Mac writes letters with marks in two parts, and other systems in one."""

    def test_coco(self, tmp_path: Path, on_disk: str, written: str) -> None:
        for name in ("été.png", "noël.png", "plain.png"):
            save(tmp_path / "images" / unicodedata.normalize(on_disk, name))
        named = [unicodedata.normalize(written, name) for name in ("été.png", "plain.png")]
        content = {"images": [{"id": i, "file_name": name, "width": 9, "height": 9} for i, name in enumerate(named)],
                   "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 4, 4]} for i in range(2)],
                   "categories": [{"id": 1, "name": "thing"}]}  # fmt: skip
        (tmp_path / "instances.json").write_text(json.dumps(content))
        listing = list_labeled(f"coco:{tmp_path}/instances.json@{tmp_path}/images/", ImagesConfig(task="detection"))
        assert sorted(listing.rows.table()["image_id"].to_pylist()) == sorted(named)
        assert all(Path(path).exists() for path in listing.rows.table()["path"].to_pylist())
        assert listing.dropped == {UNNAMED: 1}

    @pytest.mark.parametrize("task", ["detection", "segmentation"])
    def test_voc(self, tmp_path: Path, on_disk: str, written: str, task: str) -> None:
        disk, text = (unicodedata.normalize(form, "noël") for form in (on_disk, written))
        save(tmp_path / f"JPEGImages/{disk}.png")
        save(tmp_path / f"SegmentationClass/{text}.png", gray=1)
        for name, content in {
            f"Annotations/{text}.xml": f"<a><filename>{text}.png</filename><size><width>9</width><height>9</height></size>"
            "<object><name>cat</name><difficult>False</difficult>"
            "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></a>",
            "ImageSets/Main/train.txt": f"{text}\n",
            "classes.txt": "background\ncat\n",
        }.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        listing = list_labeled(f"voc:{tmp_path}/@train", ImagesConfig(task=task))
        assert listing.rows.table()["image_id"].to_pylist() == [f"{disk}.png"]
        assert list(listing.targets) == [f"{disk}.png"]
        assert listing.dropped == {}


def save(path: Path, gray: int = 99) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (9, 9), gray).save(path)


@pytest.mark.parametrize("flag", ["2", "hard", "-1"])
def test_a_difficulty_that_is_no_flag_is_named(tmp_path: Path, flag: str) -> None:
    save(tmp_path / "JPEGImages/a.png")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text(
        "<a><size><width>9</width><height>9</height></size><object><name>cat</name>"
        f"<difficult>{flag}</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></a>"
    )
    with pytest.raises(SourceError, match=rf"a\.xml: difficult is '{flag}'; write 0 or 1"):
        list_labeled(f"voc:{tmp_path}/", ImagesConfig(task="detection"))
