"""Names that every kind of source treats alike."""

from __future__ import annotations

import pytest

from ssl_ray.data.sources.listing import Listing, escaped, is_leftover, rows


@pytest.mark.parametrize(
    "name",
    ["._1.png", ".DS_Store", "a/._1.png", "__MACOSX/a/1.png", "a/.ipynb_checkpoints/1-checkpoint.png", "THUMBS.DB", "a/@eaDir/1.jpg"],
)  # fmt: skip
def test_leftovers_are_known(name: str) -> None:
    assert is_leftover(name)


@pytest.mark.parametrize("name", ["1.png", "./1.png", "../1.png", "a.b/1.png", "Thumbs.db.png", "_1.png"])
def test_other_names_are_no_leftovers(name: str) -> None:
    assert not is_leftover(name)


@pytest.mark.parametrize(
    ("name", "printed"), [("café", "café"), ("caf\udce9", "caf\\xe9"), ("a\nb\0", "a\\nb\\x00"), ("\ud800", "\\ud800")]
)
def test_odd_names_are_escaped(name: str, printed: str) -> None:
    assert escaped(name) == printed


def test_other_files_are_counted_by_suffix() -> None:
    listing = Listing("x", "folder")
    for name in ("a.psd", "b.PSD", "README", *(f"{index}.k{index}" for index in range(20))):
        listing.drop_kind(name)
    assert listing.dropped["not an image by its suffix (.psd)"] == 2
    assert listing.dropped["not an image by its suffix (none)"] == 1
    assert listing.dropped["not an image by its suffix (others)"] == 10
    assert sum(listing.dropped.values()) == 23


def test_pictures_without_a_reader_are_counted_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_ray.data.sources.listing.MISSING_READERS", {".heic": "pip install 'ssl-ray[heic]'"})
    found = Listing("x", "folder")
    found.drop_kind("photos/IMG_0001.HEIC")
    assert found.dropped == {"a .heic picture, read after pip install 'ssl-ray[heic]'": 1}


def test_class_names_that_look_alike_are_one_class() -> None:
    table = rows(["1", "2"], ["1", "2"], [0, 0], [0, 0], class_name=["caf\u00e9", "cafe\u0301"])
    assert set(table["class_name"].to_pylist()) == {"caf\u00e9"}
