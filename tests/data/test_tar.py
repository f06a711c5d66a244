"""Headers of tar files that claim what cannot be: one line, or counted, and at once."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from ssl_ray.data.sources.listing import Listing
from ssl_ray.data.sources.tar import CUT_SHORT, LINK, SPARSE
from ssl_ray.data.sources.walk import ODD_NAME
from ssl_ray.data.sources.webdataset import list_webdataset
from ssl_ray.errors import SourceError


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE, format: int = tarfile.GNU_FORMAT) -> bytes:
    """A header and nothing after it, whatever its size claims."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(format)


def member(name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, len(data), kind) + data + bytes(-len(data) % 512)


def pax(records: dict[str, str]) -> bytes:
    lines = b""
    for key, value in records.items():
        text = f" {key}={value}\n".encode()
        length = len(text)
        while len(str(length)) + len(text) != length:
            length = len(str(length)) + len(text)
        lines += str(length).encode() + text
    return member("PaxHeader", lines, tarfile.XHDTYPE)


def listed(folder: Path, content: bytes) -> Listing:
    (folder / "x.tar").write_bytes(content + bytes(1024))
    return list_webdataset(f"wds:{folder}/x.tar", labeled=False)


@pytest.mark.parametrize("before", [b"", member("0.png")], ids=["first", "second"])
@pytest.mark.parametrize(
    "content",
    [
        header("1.png", -512),
        header("1.png", -3584),
        header("1.png", -1),
        pax({"size": "-512"}) + member("1.png"),
        pax({"size": "-3584"}) + member("1.png"),
        header("long", -512, tarfile.GNUTYPE_LONGNAME) + member("1.png"),
        header("long", 2**40, tarfile.GNUTYPE_LONGNAME) + member("1.png"),
        header("pax", 2**40, tarfile.XHDTYPE) + member("1.png"),
        header("pax", -1024, tarfile.XHDTYPE) + member("1.png"),
        header("long", 512, tarfile.GNUTYPE_LONGNAME) * 5000 + member("1.png"),
        pax({}) * 3000 + member("1.png"),
    ],
    ids=["-512", "-3584", "-1", "pax -512", "pax -3584", "name -512", "name huge", "pax huge", "pax -1024", "names", "paxes"],
)
def test_a_hostile_header_names_its_file(tmp_path: Path, before: bytes, content: bytes) -> None:
    with pytest.raises(SourceError, match=r"x\.tar cannot be read as a tar file"):
        listed(tmp_path, before + content)


@pytest.mark.parametrize(
    "content",
    [
        header("1.png", 2**40),
        header("1.png", 2**70),
        pax({"size": "9" * 30}) + member("1.png"),
        pax({"size": str(2**62)}) + member("1.png"),
        pax({"GNU.sparse.size": "9" * 5000, "GNU.sparse.map": "0,1"}) + member("1.png"),
        pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "x"}) + member("1.png"),
        header("1.png", 512, tarfile.GNUTYPE_SPARSE)[:482] + b"\1",
    ],
    ids=["size", "larger", "pax size", "pax 2**62", "sparse digits", "sparse text", "sparse cut"],
)
def test_a_size_that_cannot_be_is_damage(tmp_path: Path, content: bytes) -> None:
    found = listed(tmp_path, member("0.png") + content)
    assert (len(found), dict(found.dropped)) == (1, {CUT_SHORT: 1})


def test_a_size_of_digits_without_end_is_no_size(tmp_path: Path) -> None:
    """Python reads no number of more than 4,300 digits; tarfile then takes the file for empty."""
    found = listed(tmp_path, pax({"size": "9" * 5000}) + member("1.png"))
    assert (len(found), dict(found.dropped)) == (1, {CUT_SHORT: 1})


def test_sparse_files_are_counted(tmp_path: Path) -> None:
    """Their bytes do not stand together."""
    sparse = pax({"GNU.sparse.size": "1000000", "GNU.sparse.map": "0,1", "GNU.sparse.name": "1.png"}) + member("1.png")
    found = listed(tmp_path, member("0.png") + sparse + member("2.png"))
    assert (len(found), dict(found.dropped)) == (2, {SPARSE: 1})


def test_links_are_counted(tmp_path: Path) -> None:
    links = b"".join(header(f"{kind!r}.png", 0, kind) for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE))
    found = listed(tmp_path, links + member("0.png"))
    assert (len(found), dict(found.dropped)) == (1, {LINK: 3})


def test_a_name_that_is_not_utf8_is_counted(tmp_path: Path) -> None:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for name in ("1.png", os.fsdecode(b"caf\xe9.png")):
            tar.addfile(tarfile.TarInfo(name))
    found = listed(tmp_path, file.getvalue())
    assert (len(found), dict(found.dropped)) == (1, {ODD_NAME: 1})
    assert found.examples[ODD_NAME].endswith("x.tar/caf\\xe9.png")


@pytest.mark.parametrize("start", [b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd"])
def test_a_compressed_file_named_tar_is_refused(tmp_path: Path, start: bytes) -> None:
    with pytest.raises(SourceError, match="is compressed"):
        listed(tmp_path, start)
