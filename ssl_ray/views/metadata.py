"""Metadata of picture files: find the orientation, and remove metadata that cannot be parsed."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image

ORIENTATION = 0x0112
UPRIGHT = 1

XMP_ORIENTATION = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])""")
PROFILES = ("exif", "APP1", "xmp")
"""Kinds of the legacy text chunks `Raw profile type KIND` that ImageMagick writes into PNG files."""


def orientation_of(image: Image.Image) -> int:
    """Return the orientation of an opened picture, 1 to 8; 1 if none can be read.

    EXIF comes first, then legacy PNG profiles, then XMP. Load a PNG before the call, because its metadata may follow the
    pixels. For AVIF and HEIC, only the orientation in the container counts, as their standard says. The readers apply it,
    or return it as EXIF.
    """
    if image.format in CONTAINERS:
        return _orientation_in_exif(image.info.get("exif") or b"") or UPRIGHT
    known = _exif_orientation(image)
    if known is None and not image.info.keys().isdisjoint(METADATA_KEYS):
        blobs = [_bytes(image.info[key]) for key in METADATA_KEYS if key in image.info]
        known = next((found for found in map(_orientation_in, blobs) if found is not None), None)
    return known or UPRIGHT


CONTAINERS = ("AVIF", "HEIF")
METADATA_KEYS = (*(f"Raw profile type {kind}" for kind in PROFILES), "xmp", "XML:com.adobe.xmp")


def _exif_orientation(image: Image.Image) -> int | None:
    try:
        exif = Image.Image.getexif(image)  # of the base class: PNG's own method would decode the picture
    except MemoryError:
        raise
    except Exception:  # broken EXIF makes Pillow raise nearly anything
        return None
    return _valid(exif.get(ORIENTATION))


def _valid(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and value in range(1, 9) else None


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


def _orientation_in(blob: bytes) -> int | None:
    """Find the orientation in XMP, or in a legacy profile: a name, a length, and EXIF or XMP in hexadecimal digits."""
    match = XMP_ORIENTATION.search(blob)
    if match is None and len(lines := blob.split(b"\n", 3)) == 4:
        try:
            inner = bytes.fromhex(b"".join(lines[3].split()).decode())
        except ValueError:
            return None
        match = XMP_ORIENTATION.search(inner)
        if match is None:
            return _orientation_in_exif(inner)
    return int(match[1]) if match else None


def _orientation_in_exif(data: bytes) -> int | None:
    try:
        exif = Image.Exif()
        exif.load(data)
        return _valid(exif.get(ORIENTATION))
    except MemoryError:
        raise
    except Exception:  # as in _exif_orientation
        return None


START_OF_SCAN = 0xDA
"""Marker of JPEG before the pixels."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST_TEXT = 2**20
"""Largest XMP in a PNG that is kept, in bytes: Pillow's own limit for text."""


def without_metadata(data: bytes) -> bytes | None:
    """Return a picture file without the metadata that its pixels do not need. An orientation that can be parsed is kept.

    Returns:
        the file; None if its format is not supported, or its structure cannot be parsed.
    """
    try:
        if data.startswith(PNG_SIGNATURE):
            return PNG_SIGNATURE + b"".join(chunk for kind, chunk in png_chunks(data) if _is_needed(kind, chunk))
        if data.startswith(b"\xff\xd8"):
            return b"".join(_jpeg_without_metadata(data))
        if data[4:8] == b"ftyp":  # AVIF: readers ignore items of unknown type
            return data.replace(b"Exif", b"free", 1)
        if data.startswith((b"II*\0", b"MM\0*")):
            return _tiff_without_metadata(data)
    except (struct.error, IndexError):
        pass
    return None


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and all bytes of each chunk."""
    start = len(PNG_SIGNATURE)
    while start + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        kind, stop = data[start + 4 : start + 8], start + 12 + length
        yield kind, data[start:stop]
        start = stop


def _is_needed(kind: bytes, chunk: bytes) -> bool:
    """Return whether a chunk holds pixels, palette, transparency, or an orientation that can be parsed."""
    if not kind[:1].islower() or kind == b"tRNS":
        return True
    body = chunk[8:-4]
    if struct.unpack(">I", chunk[-4:])[0] != zlib.crc32(kind + body):
        return False
    if kind == b"eXIf":
        return _orientation_in_exif(body) is not None
    return kind == b"iTXt" and body.startswith(b"XML:com.adobe.xmp\0\0") and len(body) < LARGEST_TEXT


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker, the begin and the end of each segment with a length, up to the start of the pixels.

    Raises:
        struct.error, IndexError: the structure cannot be parsed.
    """
    start = 2
    while data[start] == 0xFF:
        marker = data[start + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD7 or marker == 0x01:  # a fill byte, or a marker without a length
            start += 1 if marker == 0xFF else 2
            continue
        stop = start + 2 + struct.unpack_from(">H", data, start + 2)[0]
        yield marker, start, stop
        start = stop
        if marker == START_OF_SCAN:
            break


def _jpeg_without_metadata(data: bytes) -> Iterator[bytes]:
    yield data[:2]
    stop = 2
    for marker, start, stop in jpeg_segments(data):
        segment = data[start:stop]
        is_application = 0xE1 <= marker <= 0xEF and marker != 0xEE  # APP0 and APP14 define the colors
        is_orientation = segment[4:10] == b"Exif\0\0" and _orientation_in_exif(segment[4:]) is not None
        if (not is_application and marker != 0xFE) or is_orientation:
            yield segment
    yield data[stop:]


TIFF_METADATA = (700, 33723, 34377, 34665, 34675, 34853)
"""Tags: XMP, IPTC, Photoshop, EXIF, ICC profile, GPS."""


def _tiff_without_metadata(data: bytes) -> bytes:
    """Replace the metadata tags of the first directory by an unknown tag of one byte; all offsets stay the same."""
    order, copy = "<" if data[:2] == b"II" else ">", bytearray(data)
    (directory,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        if struct.unpack_from(order + "H", data, entry)[0] in TIFF_METADATA:
            struct.pack_into(order + "HHII", copy, entry, 65_000, 1, 1, 0)
    return bytes(copy)
