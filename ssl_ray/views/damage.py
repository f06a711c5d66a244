"""Find damage to the pixels that the decoders do not report: blocks of zeros where copying stopped, and missing ends."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress

from PIL import Image

from ssl_ray.views.metadata import START_OF_SCAN, jpeg_segments, png_chunks

END_OF_JPEG = b"\xff\xd9"
PIXELS_PER_BYTE = 512
"""Largest compression of a JPEG: a block of 64 pixels takes at least one bit."""

ARITHMETIC = range(0xC9, 0xCC)
"""Frames of JPEG whose blocks may take less than one bit."""

ZERO_TAIL = bytes(1024)
"""End of a file that was not copied in full. Compressed pixels do not end like this."""

WEBP_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANMF")
"""Chunks of WebP with pixels. Others, as EXIF, may end in zeros."""


def damage_of(image: Image.Image, data: bytes) -> str:
    """Return the damage to the pixels of an opened picture; empty if none is found."""
    if image.format in ("JPEG", "MPO"):
        return _damage_of_jpeg(image, data)
    if image.format == "PNG" and not all(map(_is_intact, png_chunks(data))):
        return "a checksum of its pixels is wrong"
    if image.format == "WEBP":
        is_cut = any(chunk.endswith(ZERO_TAIL) for kind, chunk in _webp_chunks(data) if kind in WEBP_PIXELS)
    else:
        is_cut = image.format in ("AVIF", "HEIF") and data.endswith(ZERO_TAIL)
    return "it ends in zeros, as if it had not been copied in full" if is_cut else ""


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and the content of each chunk."""
    start = 12
    while start + 8 <= len(data):
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        yield data[start : start + 4], data[start + 8 : start + 8 + size]
        start += 8 + size + size % 2


def _damage_of_jpeg(image: Image.Image, data: bytes) -> str:
    with suppress(struct.error, IndexError):
        markers = {marker: stop for marker, _, stop in jpeg_segments(data)}
        is_open = START_OF_SCAN in markers and data.find(END_OF_JPEG, markers[START_OF_SCAN]) < 0
        if is_open and data.endswith(ZERO_TAIL):
            return "it ends in zeros, as if it had not been copied in full"
        if markers.keys().isdisjoint(ARITHMETIC) and len(data) * PIXELS_PER_BYTE < image.width * image.height:
            return f"{len(data):,} bytes cannot hold {image.width} x {image.height} pixels"
    return ""


def _is_intact(chunk: tuple[bytes, bytes]) -> bool:
    """Return whether a chunk of a PNG is not of pixels, is cut short (which the decoder reports), or fits its checksum."""
    kind, data = chunk
    is_whole = len(data) == 12 + int.from_bytes(data[:4], "big")
    return kind != b"IDAT" or not is_whole or int.from_bytes(data[-4:], "big") == zlib.crc32(data[4:-4])
