"""Pictures of a corpus are looked at before anything is trained on them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssl_ray.artifacts import Corpus
from ssl_ray.data import inspection
from ssl_ray.data.shards import decoding_of
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.errors import SourceError
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest
from ssl_ray.views.channels import Decoding
from tests.pictures import encoded, exif, halves, png, png_chunk, ramp, with_chunk, xmp

Make = Callable[..., Path]
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 400, 3)).astype(np.uint8))
CUT_SHORT = encoded(NOISE, "JPEG")[:60_000]
TOO_LARGE = png(13_500, 13_500, 8, 2, [])
TWELVE_BITS = encoded(Image.fromarray(ramp(0, 4095, np.uint16)))


def corpus(run: Run, **settings: object) -> Corpus:
    found: Corpus = run("images", ingest, ImagesConfig.model_validate({"needs_unlabeled": False, **settings}))
    return found


def parquet(path: Path, bad: bytes) -> str:
    images = [encoded(halves(8 + index, 8)) for index in range(20)] + [bad]
    pq.write_table(pa.table({"image": images, "label": [index % 2 for index in range(21)]}), path)
    return str(path)


def tar(path: Path, bad: bytes) -> str:
    with tarfile.open(path, "w") as archive:
        for index in range(21):
            image = bad if index == 20 else encoded(halves(8 + index, 8))
            for suffix, data in (("png", image), ("cls", str(index % 2).encode())):
                member = tarfile.TarInfo(f"{index:03d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return f"wds:{path}"


class TestDamage:
    @pytest.mark.parametrize("split", ["labeled", "test"])
    def test_is_found_by_decoding(self, quiet_run: Run, make_folder: Make, split: str) -> None:
        folders = {"labeled": make_folder("train", {"a": 10, "b": 10}), "test": make_folder("test", {"a": 3, "b": 3})}
        (folders[split] / "a" / "bad.jpg").write_bytes(CUT_SHORT)
        with pytest.raises(SourceError, match=r"a/bad\.jpg cannot be decoded: image file is truncated .*; take it out"):
            corpus(quiet_run, labeled=str(folders["labeled"]), test=str(folders["test"]))

    @pytest.mark.parametrize("kind", [parquet, tar])
    def test_is_found_in_larger_files(self, quiet_run: Run, tmp_path: Path, kind: Callable[[Path, bytes], str]) -> None:
        source = kind(tmp_path / f"data.{kind.__name__}", CUT_SHORT)
        with pytest.raises(SourceError, match=r"data\.\w+ \(labeled/.*20.*\) cannot be decoded: image file is truncated"):
            corpus(quiet_run, labeled=source)

    def test_names_all(self, quiet_run: Run, make_folder: Make) -> None:
        labeled = make_folder("train", {"a": 10, "b": 10})
        for name in ("x", "y", "z"):
            (labeled / "b" / f"{name}.jpg").write_bytes(CUT_SHORT)
        with pytest.raises(SourceError, match=r"x\.jpg .* \(2 more: .*y\.jpg, .*z\.jpg\)"):
            corpus(quiet_run, labeled=str(labeled), test_images=4)

    def test_taken_out_the_same_command_goes_on(self, quiet_run: Run, make_folder: Make) -> None:
        labeled = make_folder("train", {"a": 10, "b": 10})
        (labeled / "a" / "bad.jpg").write_bytes(CUT_SHORT)
        with pytest.raises(SourceError):
            corpus(quiet_run, labeled=str(labeled))
        (labeled / "a" / "bad.jpg").unlink()
        assert corpus(quiet_run, labeled=str(labeled)).results["images"]["train"] == 16

    def test_a_picture_that_is_too_large_is_refused_for_its_size(self, quiet_run: Run, make_folder: Make) -> None:
        labeled = make_folder("train", {"a": 10, "b": 10})
        (labeled / "a" / "large.png").write_bytes(TOO_LARGE)
        with pytest.raises(SourceError, match=r"large\.png has 182,250,000 pixels, more than the 178,956,970 allowed"):
            corpus(quiet_run, labeled=str(labeled))

    def test_labeled_images_beyond_the_budget_are_counted(self, quiet_run: Run, make_folder: Make) -> None:
        labeled, test = make_folder("train", {"a": 10, "b": 10}), make_folder("test", {"a": 3, "b": 3})
        images = corpus(quiet_run, labeled=str(labeled), test=str(test), leak_read_mb=0)
        assert "20 labeled images were not decoded" in images.results["summary"]

    def test_long_inspections_say_how_far_they_are(
        self, quiet_run: Run, make_folder: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(inspection, "PROGRESS_S", 0.0)
        monkeypatch.setattr(inspection, "AT_ONCE", 5)
        corpus(quiet_run, labeled=str(make_folder("train", {"a": 10, "b": 10})), test_images=4)
        assert "looked at 9/20 labeled and test images" in capsys.readouterr().out

    def test_of_unlabeled_images_is_said_and_left_to_labeling(self, quiet_run: Run, make_folder: Make) -> None:
        rest = make_folder("rest", {"": 3})
        (rest / "0.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
        labeled = make_folder("train", {"a": 10, "b": 10})
        summary = corpus(quiet_run, labeled=str(labeled), unlabeled=str(rest)).results["summary"]
        assert "1 of 3 unlabeled images that were looked at" in summary
        assert "it is EPS" in summary


class TestSizes:
    @pytest.mark.parametrize("labels", [None, 4], ids=["shown", "hidden"])
    @pytest.mark.parametrize(
        "data",
        [
            encoded(halves(), "MPO", exif=exif(6), save_all=True, append_images=[Image.new("RGB", (16, 12))]),
            with_chunk(encoded(halves()), b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6), late=True),
            encoded(halves(), "TIFF", tiffinfo={700: xmp(6)}),
        ],
        ids=["MPO", "late XMP", "TIFF"],
    )
    def test_boxes_are_held_against_the_upright_picture(
        self, quiet_run: Run, tmp_path: Path, data: bytes, labels: int | None
    ) -> None:
        """Stored 40 x 20, upright 20 x 40; of hidden labels the size alone is read."""
        (tmp_path / "photos").mkdir()
        for index in range(10):
            (tmp_path / "photos" / f"{index}.jpg").write_bytes(data + bytes([index]))
        content = {
            "images": [{"id": i, "file_name": f"{i}.jpg", "width": 20, "height": 40} for i in range(10)],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 1, "bbox": [2, 22, 10, 15], "area": 150} for i in range(10)
            ],
            "categories": [{"id": 1, "name": "nut"}],
        }
        (tmp_path / "boxes.json").write_text(json.dumps(content))
        source = f"coco:{tmp_path}/boxes.json@{tmp_path}/photos"
        images = corpus(quiet_run, labeled=source, task="detection", labels=labels)
        assert images.results["images"]["train"] == (labels or 8)


class TestRange:
    def test_dark_pictures_of_many_bits_are_counted(self, quiet_run: Run, make_folder: Make) -> None:
        labeled, rest = make_folder("train", {"a": 10, "b": 10}), make_folder("rest", {"": 1})
        for index in range(9):
            (rest / f"deep{index}.png").write_bytes(TWELVE_BITS + bytes([index]))
        images = corpus(quiet_run, labeled=str(labeled), unlabeled=str(rest))
        assert "9 of 9 pictures of more than 8 bits" in images.results["summary"]
        assert "images.range=[0,4095]" in images.results["summary"]

    def test_with_a_range_nothing_is_said(self, quiet_run: Run, make_folder: Make) -> None:
        labeled, rest = make_folder("train", {"a": 10, "b": 10}), make_folder("rest", {"": 1})
        (rest / "deep.png").write_bytes(TWELVE_BITS)
        images = corpus(quiet_run, labeled=str(labeled), unlabeled=str(rest), range=[0, 4095])
        assert images.results["small_range"] == {}

    def test_pictures_without_a_usual_range_are_named_with_the_setting(self, quiet_run: Run, make_folder: Make) -> None:
        labeled = make_folder("train", {"a": 10, "b": 10})
        (labeled / "a" / "x.tif").write_bytes(encoded(Image.fromarray(ramp(0, 3000, np.float32)), "TIFF"))
        with pytest.raises(SourceError, match=r"x\.tif .* images\.range=\[0,3000\]"):
            corpus(quiet_run, labeled=str(labeled))


def test_a_corpus_remembers_how_its_pictures_are_decoded(quiet_run: Run, make_folder: Make) -> None:
    labeled = make_folder("train", {"a": 10, "b": 10})
    images = corpus(quiet_run, labeled=str(labeled), background=[0, 9, 99], range=[0, 4095])
    assert decoding_of(Corpus(images.path)) == Decoding(background=(0, 9, 99), range=(0, 4095))


def test_metadata_that_cannot_be_parsed_costs_no_label(quiet_run: Run, make_folder: Make) -> None:
    labeled = make_folder("train", {"a": 10, "b": 10})
    picture = encoded(halves())
    (labeled / "a" / "text.png").write_bytes(picture[:33] + png_chunk(b"iCCP", b"icc\0\1") + picture[33:])
    assert corpus(quiet_run, labeled=str(labeled), test_images=4).results["images"]["train"] == 17
