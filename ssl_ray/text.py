"""Text files that people write: lists of images, and class names, one per line."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable

from ssl_ray.errors import SourceError

LINE_BREAK = re.compile(r"\r\n|\r|\n")


def decoded(data: bytes, where: str) -> str:
    """Decode a text file: UTF-16 if it starts with that byte order mark, else UTF-8 with or without one.

    Raises:
        SourceError: it is neither; names the file and the byte.
    """
    encoding, name = "utf-8-sig", "UTF-8"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding, name = "utf-16", "UTF-16"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        # Some codecs count the byte order mark and some do not, so the position is counted from the end.
        byte = len(data) - len(error.object) + error.start + 1
        raise SourceError(f"{where} is not {name} (byte {byte}); save it as UTF-8") from None
    if "\0" in text:
        byte = len(text[: text.index("\0")].encode()) + 1 + len(codecs.BOM_UTF8) * data.startswith(codecs.BOM_UTF8)
        at = f"byte {byte}" if name == "UTF-8" else f"character {text.index(chr(0)) + 1}"
        raise SourceError(f"{where} is no text: it holds a zero ({at}); save it as UTF-8")
    return text


def lines_of(data: bytes, where: str) -> list[str]:
    """Return the lines of a text file, without space around them and without empty lines.

    Raises:
        SourceError: it is not text.
    """
    return [line.strip() for line in LINE_BREAK.split(decoded(data, where)) if line.strip()]


def distinct(names: Iterable[str]) -> list[str]:
    """Make names distinct: a repeated name gets its index, as ImageNet's second class `crane` does."""
    names = list(names)
    seen: set[str] = set()
    given = set(names)
    found = []
    for index, name in enumerate(names):
        own = name
        while own in seen or (own != name and own in given):
            own = f"{own} ({index})"
        found.append(own)
        seen.add(own)
    return found
