"""Text files that people write, in the encodings that their editors leave behind."""

from __future__ import annotations

import pytest

from ssl_ray.errors import SourceError
from ssl_ray.text import distinct, lines_of


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_lines_are_the_same_from_any_editor(encoding: str, line_end: str) -> None:
    assert lines_of(line_end.join(["café", "", " my cat ", ""]).encode(encoding), "x.txt") == ["café", "my cat"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"0001\n\xcd\xbc\xcf\xf1\n", r"^x\.txt is not UTF-8 \(byte \d\)"),
        (b"ab\xff", r"^x\.txt is not UTF-8 \(byte 3\)"),
        (b"\xef\xbb\xbfab\xff", r"^x\.txt is not UTF-8 \(byte 6\)"),
        (b"\xff\xfea\x00b", r"^x\.txt is not UTF-16 \(byte 5\)"),
        ("ab".encode("utf-16-le"), r"^x\.txt is no text: it holds a zero \(byte 2\)"),
    ],
)
def test_other_bytes_are_refused_with_their_place(data: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        lines_of(data, "x.txt")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["crane", "owl", "crane"], ["crane", "owl", "crane (2)"]),
        (["a", "a", "a"], ["a", "a (1)", "a (2)"]),
        (["a", "a", "a (1)"], ["a", "a (1) (1)", "a (1)"]),
    ],
)
def test_a_second_name_gets_its_number(names: list[str], found: list[str]) -> None:
    assert distinct(names) == found
