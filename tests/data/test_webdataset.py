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
from ssl_ray.data.sources.webdataset import expand
from ssl_ray.errors import SourceError
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest
from ssl_ray.views.decode import Preprocess

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


def test_members_are_read_where_they_stand(quiet_run: Run, tars: Path, make_folder: Make) -> None:
    config = ImagesConfig(
        labeled=f"wds:{tars}/shard-{{0000..0001}}.tar", unlabeled=f"wds:{tars}/shard-*2.tar", test_images=4, shard_rows=4
    )
    images: Corpus = quiet_run("images", ingest, config)
    assert images.classes == ["cat", "dog"]
    assert images.results["images"] == {"train": 8, "val": 0, "test": 4, "unlabeled": 6}
    assert images.results["dropped"]["not an image by its suffix"] == 18
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
        with pytest.raises(SourceError, match=r"two images have the id unlabeled/x\.tar/a\.png: .* row 0 and .* row 1"):
            self.ingest(quiet_run, f"wds:{tmp_path}/x.tar", labeled)

    def test_a_tar_that_changed_since_is_noticed(self, quiet_run: Run, tars: Path, labeled: str) -> None:
        images = self.ingest(quiet_run, f"wds:{tars}/shard-0002.tar", labeled)
        path = tars / "shard-0002.tar"
        path.write_bytes(path.read_bytes() + b"\0" * 1024)
        shard = images.shards("unlabeled")[0]
        with pytest.raises(SourceError, match="changed since it was listed"):
            read_encoded(images, shard, np.arange(shard.num_rows))
