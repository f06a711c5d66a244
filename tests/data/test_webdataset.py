from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssl_ray.artifacts import Corpus
from ssl_ray.data.shards import decode_all, read_encoded
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.data.sources.listing import LEFTOVER
from ssl_ray.data.sources.parquet import ColumnsConfig
from ssl_ray.data.sources.webdataset import OTHER_IMAGE, expand, list_webdataset
from ssl_ray.errors import SourceError
from ssl_ray.settings.views import Preprocess
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest

Make = Callable[..., Path]


def write_tar(path: Path, members: list[tuple[str, bytes]], links: dict[str, str] | None = None) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)


@pytest.fixture
def tars(tmp_path: Path, make_folder: Make) -> Path:
    """Three tars of six samples each: an image, its class, and a caption that is no image."""
    files = sorted(make_folder("all", {"cat": 9, "dog": 9}).rglob("*.png"))
    draw = np.random.default_rng(0)
    files = [files[i] for i in draw.permutation(len(files))]
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(3):
        members = []
        for index, file in enumerate(files[6 * number : 6 * number + 6]):
            key = f"{number}{index:03d}"
            members += [(f"{key}.png", file.read_bytes()), (f"{key}.cls", file.parent.name.encode()), (f"{key}.txt", b"hi")]
        write_tar(folder / f"shard-{number:04d}.tar", members)
    return folder


def test_ranges_keep_their_width() -> None:
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("a.tar") == ["a.tar"]
    assert expand("{0..1}/{0..1}.tar") == ["0/0.tar", "0/1.tar", "1/0.tar", "1/1.tar"]


@pytest.mark.parametrize(
    "pattern", ["a-{0..999999999}.tar", "{0..9999}/{0..9999}.tar", "{0..9%s}.tar" % ("9" * 5000), "{3..1}.tar"]
)
def test_ranges_that_cannot_be_are_refused(pattern: str) -> None:
    with pytest.raises(SourceError, match="range"):
        expand(pattern)


def test_members_are_read_where_they_stand(quiet_run: Run, tars: Path, make_folder: Make) -> None:
    config = ImagesConfig(
        labeled=f"wds:{tars}/shard-{{0000..0001}}.tar", unlabeled=f"wds:{tars}/shard-*2.tar", test_images=4, shard_rows=4
    )
    images: Corpus = quiet_run("images", ingest, config)
    assert images.classes == ["cat", "dog"]
    assert images.results["images"] == {"train": 8, "val": 0, "test": 4, "unlabeled": 6}
    assert images.results["dropped"]["not an image by its suffix (.txt)"] == 18
    (first, *_) = images.shards("unlabeled")
    with tarfile.open(tars / "shard-0002.tar") as tar:
        expected = {name: tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".png")}  # type: ignore[union-attr]
    for shard in images.shards("unlabeled"):
        ids = images.rows(shard.shard)["image_id"].to_pylist()
        for rows in (np.arange(shard.num_rows), np.array([shard.num_rows - 1])):
            read = read_encoded(images, shard, rows)
            assert read == [expected[ids[row].split("/")[-1]] for row in rows]
    assert decode_all(read_encoded(images, first, np.arange(first.num_rows)), Preprocess(size=16))[1] == []


def test_labels_come_from_cls_members(quiet_run: Run, tars: Path) -> None:
    images: Corpus = quiet_run("images", ingest, ImagesConfig(labeled=f"wds:{tars}/*.tar", labels=6, test_images=4))
    for shard in images.shards("train"):
        for row, data in zip(
            images.rows(shard.shard).to_pylist(), read_encoded(images, shard, np.arange(shard.num_rows)), strict=True
        ):
            pixels, _ = decode_all([data], Preprocess(size=16))
            # The fixture paints class number n with a red of 60 n to 60 n + 60.
            assert (pixels[..., 0].mean() > 60) == (images.classes[row["label"]] == "dog")


class TestBadTars:
    def ingest(self, run: Run, source: str, labeled: str) -> Corpus:
        return run("images", ingest, ImagesConfig(labeled=labeled, unlabeled=source))  # type: ignore[no-any-return]

    @pytest.fixture
    def labeled(self, make_folder: Make) -> str:
        return str(make_folder("train", {"a": 10, "b": 10}))

    def test_cut_short(self, quiet_run: Run, tars: Path, labeled: str) -> None:
        """Members before the cut are images; what is missing is named and counted."""
        path = tars / "shard-0002.tar"
        with tarfile.open(path) as tar:
            fourth = [member for member in tar if member.name.endswith(".png")][3]
        path.write_bytes(path.read_bytes()[: fourth.offset_data + fourth.size // 2])
        images = self.ingest(quiet_run, f"wds:{path}", labeled)
        assert images.num_images("unlabeled") == 3
        assert images.results["dropped"]["tar file cut short or damaged: images after that are missing"] == 1
        assert (
            "shard-0002.tar"
            in images.results["dropped_examples"]["tar file cut short or damaged: images after that are missing"]
        )

    def test_a_sample_that_lost_its_label_at_the_cut_is_counted(
        self, quiet_run: Run, make_folder: Make, tmp_path: Path
    ) -> None:
        files = sorted(make_folder("some", {"": 12}).glob("*.png"))
        pairs = [(f"{index:02}", ("dog", "cat")[index % 2]) for index in range(12)]
        members = [item for (key, label), file in zip(pairs, files, strict=True)
                   for item in ((f"{key}.png", file.read_bytes()), (f"{key}.cls", label.encode()))]  # fmt: skip
        write_tar(tmp_path / "a.tar", members)
        with tarfile.open(tmp_path / "a.tar") as tar:
            label = tar.getmember("10.cls")
        (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[: label.offset])
        images = quiet_run("images", ingest, ImagesConfig(labeled=f"wds:{tmp_path}/a.tar", needs_unlabeled=False))
        assert images.num_images("train") + images.num_images("test") == 10
        assert images.results["dropped"]["sample without its label, where a tar file is cut short"] == 1

    @pytest.mark.parametrize("where", ["border", "header", "damaged", "joined"])
    def test_what_tarfile_passes_over(self, quiet_run: Run, tars: Path, labeled: str, where: str) -> None:
        """Cut at a member's border or inside a header, a damaged header, or two files put together: tarfile just stops."""
        path = tars / "shard-0002.tar"
        with tarfile.open(path) as tar:
            fourth = [member for member in tar if member.name.endswith(".png")][3]
        data = path.read_bytes()
        damaged = bytearray(data)
        damaged[fourth.offset + 10] ^= 255
        changed = {"border": data[: fourth.offset], "header": data[: fourth.offset + 100], "damaged": bytes(damaged),
                   "joined": data + (tars / "shard-0001.tar").read_bytes()}  # fmt: skip
        path.write_bytes(changed[where])
        images = self.ingest(quiet_run, f"wds:{path}", labeled)
        assert images.num_images("unlabeled") == (6 if where == "joined" else 3)
        assert images.results["dropped"]["tar file cut short or damaged: images after that are missing"] == 1

    @pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png"])
    def test_a_member_that_leaves_its_folder(self, quiet_run: Run, tmp_path: Path, labeled: str, name: str) -> None:
        write_tar(tmp_path / "evil.tar", [("good.png", b"x"), (name, b"x")])
        with pytest.raises(SourceError, match="leaves its folder"):
            self.ingest(quiet_run, f"wds:{tmp_path}/evil.tar", labeled)

    def test_a_link_is_left_out_and_counted(self, quiet_run: Run, tars: Path, tmp_path: Path, labeled: str) -> None:
        with tarfile.open(tars / "shard-0000.tar") as tar:
            good = tar.extractfile("0000.png").read()  # type: ignore[union-attr]
        write_tar(tmp_path / "l.tar", [("good.png", good)], links={"passwd.png": "/etc/passwd"})
        images = self.ingest(quiet_run, f"wds:{tmp_path}/l.tar", labeled)
        assert images.num_images("unlabeled") == 1
        assert images.results["dropped"]["a link or device in a tar file"] == 1

    def test_no_tar_at_all(self, quiet_run: Run, tmp_path: Path, labeled: str) -> None:
        (tmp_path / "x.tar").write_bytes(b"no tar" * 1000)
        with pytest.raises(SourceError, match="cannot be read as a tar file"):
            self.ingest(quiet_run, f"wds:{tmp_path}/x.tar", labeled)

    def test_compressed(self, quiet_run: Run, tmp_path: Path, labeled: str) -> None:
        (tmp_path / "x.tar.gz").write_bytes(b"")
        with pytest.raises(SourceError, match="compressed"):
            self.ingest(quiet_run, f"wds:{tmp_path}/x.tar.gz", labeled)

    def test_a_label_is_missing(self, quiet_run: Run, tars: Path, tmp_path: Path) -> None:
        write_tar(tmp_path / "x.tar", [("a.png", b"x"), ("a.cls", b"0"), ("b.png", b"x")])
        with pytest.raises(SourceError, match=r"b\.png has no label"):
            self.ingest(quiet_run, f"wds:{tars}/*.tar", f"wds:{tmp_path}/x.tar")

    def test_two_members_with_one_name(self, quiet_run: Run, tmp_path: Path, labeled: str) -> None:
        write_tar(tmp_path / "x.tar", [("a.png", b"x"), ("a.png", b"y")])
        with pytest.raises(SourceError, match=r"x\.tar has two members named a\.png"):
            self.ingest(quiet_run, f"wds:{tmp_path}/x.tar", labeled)

    def test_a_tar_that_changed_since_is_noticed(self, quiet_run: Run, tars: Path, labeled: str) -> None:
        images = self.ingest(quiet_run, f"wds:{tars}/shard-0002.tar", labeled)
        path = tars / "shard-0002.tar"
        path.write_bytes(path.read_bytes() + b"\0" * 1024)
        shard = images.shards("unlabeled")[0]
        with pytest.raises(SourceError, match="changed since it was listed"):
            read_encoded(images, shard, np.arange(shard.num_rows))


class TestSamples:
    """One image and one label per sample. Members hold no pixels: names are enough."""

    def listed(
        self, folder: Path, members: dict[str, str], labeled: bool = True, **columns: str
    ) -> tuple[dict[str, str], dict[str, int]]:
        """Classes by image, and what is left out by reason."""
        write_tar(folder / "x.tar", [(name, content.encode()) for name, content in members.items()])
        listing = list_webdataset(f"wds:{folder}/x.tar", ColumnsConfig(**columns), labeled=labeled)
        table = listing.rows.table()
        names = [name.removeprefix("x.tar/") for name in table["image_id"].to_pylist()]
        return dict(zip(names, table["class_name"].to_pylist(), strict=True)), dict(listing.dropped)

    @pytest.mark.parametrize("labeled", [True, False])
    def test_the_plain_image_stands_for_its_sample(self, tmp_path: Path, labeled: bool) -> None:
        members = {"a/1.seg.png": "", "a/1.cls": "cat", "a/1.jpg": "", "a/1.png": "", "a/2.left.webp": "", "a/2.cls": "dog"}
        found, dropped = self.listed(tmp_path, members, labeled)
        assert list(found) == ["a/1.jpg", "a/2.left.webp"]
        assert dropped == {OTHER_IMAGE: 2} | ({} if labeled else {"not an image by its suffix (.cls)": 2})

    def test_a_setting_chooses_the_image(self, tmp_path: Path) -> None:
        members = {"1.left.png": "", "1.right.PNG": "", "2.jpg": "", "3.depth.png": "", "4.img": ""}
        found, dropped = self.listed(tmp_path, members, labeled=False, image="right.png; jpg;img")
        assert (list(found), dropped) == (["1.right.PNG", "2.jpg", "4.img"], {OTHER_IMAGE: 2})

    def test_a_setting_that_chooses_nothing_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"images\.columns\.image=bmp"):
            self.listed(tmp_path, {"1.jpg": ""}, labeled=False, image="bmp")

    @pytest.mark.parametrize("labeled", [True, False])
    def test_joined_samples_are_refused_by_name(self, tmp_path: Path, labeled: bool) -> None:
        members = {"d/img.1.png": "", "d/img.1.cls": "cat", "d/img.2.png": "", "d/img.2.cls": "dog"}
        with pytest.raises(SourceError, match=r"sample d/img has 2 images \(d/img\.1\.png, d/img\.2\.png\).*\.cls.*first dot"):
            self.listed(tmp_path, members, labeled)

    def test_labels_that_differ_are_refused_by_name(self, tmp_path: Path) -> None:
        members = {"img.png": "", "img.1.cls": "cat", "img.2.cls": "dog"}
        with pytest.raises(SourceError, match=r"sample img has labels that differ \(img\.1\.cls: cat, img\.2\.cls: dog\)"):
            self.listed(tmp_path, members)

    def test_a_label_may_stand_anywhere_in_its_tar(self, tmp_path: Path) -> None:
        members = {"1.cls": "3\n", "1.png": "", "2.png": "", "3.png": "", "3.CLS": "\ufeff 5", "2.cls": "caf\u0065\u0301"}
        assert self.listed(tmp_path, members) == ({"1.png": "3", "2.png": "caf\u00e9", "3.png": "5"}, {})

    @pytest.mark.parametrize(
        ("setting", "content", "label"),
        [
            (None, '{"label": 3}', "3"),
            ("json.label", '{"label": "cat"}', "cat"),
            ("json.a.0.name", '{"a": [{"name": "dog"}]}', "dog"),
        ],
    )
    def test_labels_of_json_members(self, tmp_path: Path, setting: str | None, content: str, label: str) -> None:
        columns = {} if setting is None else {"label": setting}
        assert self.listed(tmp_path, {"1.png": "", "1.json": content}, **columns) == ({"1.png": label}, {})

    def test_labels_of_another_extension(self, tmp_path: Path) -> None:
        found, dropped = self.listed(tmp_path, {"1.png": "", "1.cls": "0", "1.name.txt": "cat"}, label="name.txt")
        assert (found, dropped) == ({"1.png": "cat"}, {"not an image by its suffix (.cls)": 1})

    @pytest.mark.parametrize(
        ("member", "content", "message"),
        [
            ("1.cls", "", r"the label 1\.cls is empty"),
            ("1.cls", " \n", r"the label 1\.cls is empty"),
            ("1.cls", "cat\ndog", "several lines"),
            ("1.cls", "x" * (2**20 + 1), "1,048,577 bytes"),
            ("1.json", '{"label": null}', "holds null in label, not a text or a whole number"),
            ("1.json", '{"label": 1.5}', r"holds 1\.5"),
            ("1.json", '{"label": NaN}', "holds NaN"),
            ("1.json", '{"label": [1]}', r"holds \[1\]"),
            ("1.json", '{"label": "\\ud800"}', "is not UTF-8"),
            ("1.json", '{"class": 1}', r"has no field label \(class; see images\.columns\.label\)"),
            ("1.json", "{", "is not JSON"),
            ("1.json", "[" * 100_000, "is not JSON"),
            ("1.json", '{"label": %s}' % ("9" * 5000), "is not JSON"),
            ("1.txt", "cat", r"1\.png has no label; .* 1\.cls"),
        ],
    )  # fmt: skip
    def test_a_label_that_cannot_be_is_named(self, tmp_path: Path, member: str, content: str, message: str) -> None:
        with pytest.raises(SourceError, match=message):
            self.listed(tmp_path, {"1.png": "", member: content})

    def test_a_label_that_is_not_utf8_is_named(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "x.tar", [("1.png", b""), ("1.cls", b"caf\xe9")])
        with pytest.raises(SourceError, match=r"label 1\.cls is not UTF-8 \(byte 4\)"):
            list_webdataset(f"wds:{tmp_path}/x.tar", labeled=True)

    def test_leftovers_are_no_samples(self, tmp_path: Path) -> None:
        members = {"./._1.png": "", "./1.png": "", "._1.cls": "", "1.cls": "cat", "__MACOSX/1.png": "", ".DS_Store": ""}
        assert self.listed(tmp_path, members) == ({"1.png": "cat"}, {LEFTOVER: 4})

    def test_tars_of_one_name_in_two_folders(self, tmp_path: Path) -> None:
        for name in ("0", "1"):
            (tmp_path / name).mkdir()
            write_tar(tmp_path / name / "x.tar", [("1.png", b"")])
        listing = list_webdataset(f"wds:{tmp_path}/{{0..1}}/x.tar", labeled=False)
        assert listing.rows.table()["image_id"].to_pylist() == ["0/x.tar/1.png", "1/x.tar/1.png"]
