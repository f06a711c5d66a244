"""Every file of a folder once, and everything that is not used counted. Files hold no pixels here: names are enough."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ssl_ray.data.sources.folder import list_folder
from ssl_ray.data.sources.listing import LEFTOVER, Listing
from ssl_ray.data.sources.walk import ABOVE, DEAD, ODD_NAME, SPECIAL, TWICE, walk
from ssl_ray.errors import SourceError, StorageError


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def listed(folder: Path) -> tuple[list[str], dict[str, int]]:
    """Names of the files, and what was passed over by reason."""
    listing = Listing(str(folder), "folder")
    found = [entry.path.removeprefix(f"{folder}/") for part in walk(str(folder), listing) for entry in part]
    return found, dict(listing.dropped)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write(tmp_path / "in", "1.png", "a/2.png", "a/b/c/d/e/f/3.png")


NAMES = ["1.png", "a/2.png", "a/b/c/d/e/f/3.png"]


def test_files_at_any_depth_come_in_one_order(pictures: Path) -> None:
    assert listed(pictures) == (NAMES, {})


class TestLinks:
    def test_a_link_that_leads_nowhere_is_counted(self, pictures: Path) -> None:
        (pictures / "a" / "gone.png").symlink_to("nowhere.png")
        (pictures / "loop.png").symlink_to("loop.png")
        assert listed(pictures) == (NAMES, {DEAD: 2})

    @pytest.mark.parametrize("target", [".", "a", "a/b"])
    @pytest.mark.parametrize("place", ["again", "a/b/again"])
    def test_a_link_into_the_same_folder_lists_nothing_twice(self, pictures: Path, target: str, place: str) -> None:
        (pictures / place).symlink_to(pictures / target)
        assert listed(pictures) == (NAMES, {TWICE: 1})

    def test_a_link_to_a_listed_file_is_counted(self, pictures: Path) -> None:
        (pictures / "latest.png").symlink_to("a/2.png")
        assert listed(pictures) == (NAMES, {TWICE: 1})

    def test_a_link_to_a_folder_above_is_not_followed(self, pictures: Path) -> None:
        write(pictures.parent, "foreign.png")
        (pictures / "up").symlink_to("..")
        assert listed(pictures) == (NAMES, {ABOVE: 1})

    def test_a_folder_elsewhere_is_listed_once(self, pictures: Path, tmp_path: Path) -> None:
        write(tmp_path / "out", "4.png", "g/5.png")
        (pictures / "x").symlink_to(tmp_path / "out")
        (pictures / "y").symlink_to(tmp_path / "out")
        (pictures / "z").symlink_to(tmp_path / "out" / "g")
        (tmp_path / "out" / "back").symlink_to(pictures)
        (tmp_path / "out" / "self").symlink_to(tmp_path / "out")
        assert listed(pictures) == ([*NAMES, "x/4.png", "x/g/5.png"], {TWICE: 4})

    def test_a_folder_that_holds_a_linked_one_gives_only_the_rest(self, pictures: Path, tmp_path: Path) -> None:
        write(tmp_path / "out", "4.png", "g/5.png")
        (pictures / "x").symlink_to(tmp_path / "out" / "g")
        (pictures / "y").symlink_to(tmp_path / "out")
        assert listed(pictures) == ([*NAMES, "x/5.png", "y/4.png"], {TWICE: 1})

    def test_two_links_to_one_file_elsewhere_are_one_image(self, pictures: Path, tmp_path: Path) -> None:
        write(tmp_path / "out", "4.png")
        (pictures / "4.png").symlink_to(tmp_path / "out" / "4.png")
        (pictures / "5.png").symlink_to(tmp_path / "out" / "4.png")
        (pictures / "z").symlink_to(tmp_path / "out")
        assert listed(pictures) == (["1.png", "4.png", *NAMES[1:]], {TWICE: 2})

    def test_links_into_a_hidden_store_are_files(self, pictures: Path) -> None:
        """Tools that keep versions of data put contents below `.git` or `.dvc`, and links in their places."""
        write(pictures, ".store/4")
        (pictures / "4.png").symlink_to(".store/4")
        assert listed(pictures) == (["1.png", "4.png", *NAMES[1:]], {LEFTOVER: 1})

    def test_a_source_that_is_a_link(self, pictures: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(pictures)
        (pictures / "again").symlink_to(tmp_path / "link")
        assert listed(tmp_path / "link") == (NAMES, {TWICE: 1})

    def test_size_and_time_are_those_of_the_file(self, tmp_path: Path) -> None:
        write(tmp_path / "out", "4.png")
        (tmp_path / "out" / "4.png").write_bytes(b"12345")
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "link.png").symlink_to(tmp_path / "out" / "4.png")
        ((entry,),) = (part for part in walk(str(tmp_path / "in")) if part)
        assert (entry.size, entry.mtime_ns) == (5, (tmp_path / "out" / "4.png").stat().st_mtime_ns)


class TestOtherThings:
    def test_leftovers_are_counted(self, pictures: Path) -> None:
        write(pictures, ".DS_Store", "a/._2.png", "__MACOSX/a/._2.png", ".ipynb_checkpoints/1-checkpoint.png", "a/Thumbs.db")
        (pictures / ".link.png").symlink_to("nowhere")
        assert listed(pictures) == (NAMES, {LEFTOVER: 6})

    def test_pipes_are_never_opened(self, pictures: Path) -> None:
        os.mkfifo(pictures / "pipe.png")
        (pictures / "link.png").symlink_to("pipe.png")
        assert listed(pictures) == (NAMES, {SPECIAL: 2})

    def test_a_name_that_is_not_utf8_is_counted(self, pictures: Path) -> None:
        write(pictures, os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"caf\xe9/4.png"))
        assert listed(pictures) == (NAMES, {ODD_NAME: 2})

    def test_a_folder_that_may_not_be_read_stops(self, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        forbid(monkeypatch, pictures / "a" / "b")
        with pytest.raises(StorageError, match="a/b may not be read"):
            listed(pictures)

    def test_a_hidden_folder_that_may_not_be_read_is_counted(self, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(pictures, "lost+found/1")
        forbid(monkeypatch, pictures / "lost+found")
        assert listed(pictures) == (NAMES, {LEFTOVER: 1})

    def test_a_folder_deleted_meanwhile_is_named(self, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        forbid(monkeypatch, pictures / "a", FileNotFoundError(2, "No such file or directory"))
        with pytest.raises(SourceError, match="a was deleted while it was listed"):
            listed(pictures)


def forbid(monkeypatch: pytest.MonkeyPatch, folder: Path, error: OSError | None = None) -> None:
    """Let a folder fail when it is read: tests may run as root, who may read everything."""
    scan = os.scandir

    def scandir(path: str) -> object:
        if path == str(folder):
            raise error or PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)


class TestClassFolders:
    def classes(self, folder: Path) -> dict[str, int]:
        names: list[str] = list_folder(str(folder), labeled=True).rows.table()["class_name"].to_pylist()
        return {name: names.count(name) for name in sorted(set(names))}

    def test_a_class_may_be_a_link(self, tmp_path: Path) -> None:
        write(tmp_path, "in/cat/1.png", "elsewhere/2.PNG", "elsewhere/3.JPeG")
        (tmp_path / "in" / "dog").symlink_to(tmp_path / "elsewhere")
        assert self.classes(tmp_path / "in") == {"cat": 1, "dog": 2}

    def test_names_that_look_alike_are_one_class(self, tmp_path: Path) -> None:
        write(tmp_path, "caf\u00e9/1.png", "cafe\u0301/1.png", "cat/1.png")
        assert self.classes(tmp_path) == {"caf\u00e9": 2, "cat": 1}

    def test_classes_without_an_image_are_named(self, tmp_path: Path) -> None:
        write(tmp_path, "cat/1.png", "dog/1.png", "heron/1.raw", "owl/.DS_Store", "labels.csv")
        (tmp_path / "mole").mkdir()
        assert dict(list_folder(str(tmp_path), labeled=True).dropped) == {
            "class folders without an image (heron, mole, owl)": 3,
            "not an image by its suffix (.raw)": 1,
            "not an image by its suffix (.csv)": 1,
            LEFTOVER: 1,
        }

    def test_a_class_that_is_not_utf8_is_refused(self, tmp_path: Path) -> None:
        write(tmp_path, "cat/1.png", os.fsdecode(b"caf\xe9/1.png"))
        with pytest.raises(SourceError, match=r"the class folder caf\\xe9 is not UTF-8"):
            list_folder(str(tmp_path), labeled=True)

    @pytest.mark.parametrize(
        ("folders", "command"),
        [
            (["train/a", "test/a", "valid/a"], "--labeled {}/train --test {}/test"),
            (["Training/a", "validation/a"], "--labeled {}/Training --test {}/validation"),
            (["train2017", "val2017"], "--labeled {}/train2017 --test {}/val2017"),
            (["train_set/a", "train_set/b"], "--labeled {}/train_set"),
            (["train/a", "test/a", "extra"], "--labeled {}/train --test {}/test"),
            (["images/train/a", "images/val/a"], "--labeled {}/images/train --test {}/images/val"),
            (["cat/train", "cat/test", "dog/train", "dog/test"], "put the split above the class, as in {}/train/cat"),
        ],
        ids=lambda value: value if isinstance(value, str) else "+".join(value),
    )
    def test_splits_are_no_classes(self, tmp_path: Path, folders: list[str], command: str) -> None:
        write(tmp_path, *(f"{folder}/{index}.png" for folder in folders for index in range(2)))
        with pytest.raises(SourceError) as caught:
            list_folder(str(tmp_path), labeled=True)
        assert "holds the splits of a data set" in str(caught.value)
        assert str(caught.value).endswith(command.replace("{}", str(tmp_path)))

    def test_a_class_may_be_called_train(self, tmp_path: Path) -> None:
        write(tmp_path, "bus/1.png", "train/1.png", "trainer/1.png")
        assert self.classes(tmp_path) == {"bus": 1, "train": 1, "trainer": 1}

    def test_one_folder_in_a_class_may_be_called_test(self, tmp_path: Path) -> None:
        write(tmp_path, "bus/test/1.png", "car/test/1.png")
        assert self.classes(tmp_path) == {"bus": 1, "car": 1}

    @pytest.mark.parametrize("labeled", [True, False])
    @pytest.mark.parametrize(
        ("file", "pattern"),
        [
            ("part-0.parquet", "{}/*.parquet"),
            ("label=cat/part-0.parquet", "{}/**/*.parquet"),
            ("data/shard-0.tar", "wds:{}/**/*.tar"),
        ],
    )
    def test_a_folder_of_large_files_names_the_pattern_to_write(
        self, tmp_path: Path, file: str, pattern: str, labeled: bool
    ) -> None:
        write(tmp_path, file, "README.md")
        with pytest.raises(SourceError) as caught:
            list_folder(str(tmp_path), labeled=labeled)
        assert f"give them as '{pattern.format(tmp_path)}'" in str(caught.value)
