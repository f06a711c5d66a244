"""Decode encoded bytes to uint8 pixels. Every picture that a model sees, in training, labeling or use, is decoded here.

All pictures are decoded alike: a fixed list of formats, upright, over one background, 8 bits per channel, in bounded memory.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from ssl_ray.settings.views import Preprocess
from ssl_ray.views.channels import Decoding, has_alpha, is_deep, raw_mode, to_rgb
from ssl_ray.views.damage import damage_of
from ssl_ray.views.memory import LARGE_BYTES, room_for
from ssl_ray.views.metadata import ORIENTATION, orientation_of, without_metadata

MAX_PIXELS = 178_956_970
"""Largest picture. Pillow refuses the same: more than twice its warning level may be a decompression bomb."""

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".mpo", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".heic", ".heif"),
)
"""Suffixes of picture files."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that are opened; JPEG includes MPO. Pillow knows more: documents, and EPS, which starts another program."""

TIFF_OTHER = "a TIFF that is damaged, or of a kind that Pillow does not read (64 bits, five channels, cloud layouts)"
OTHERS = {
    b"%!PS": "EPS",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"<?xml": "XML or SVG",
    b"<!doc": "HTML",
    b"<html": "HTML",
    b"8BPS": "Photoshop",
    b"\xd7\xcd\xc6\x9a": "WMF",
    b"\1\0\t\0": "WMF",
    b"\1\0\0\0l\0\0\0": "EMF",
    b"\0\0\1\0": "an icon",
    b"DDS ": "DDS",
    b"P7\n": "PAM",
    b"\xff\n": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"SIMPLE  =": "FITS",
    b"\x89HDF": "HDF5",
    b"PK\x03\x04": "ZIP",
    b"version https://git-lfs": "a pointer of Git LFS that stands for a picture",
    b"\xff\xd8": "a JPEG with a damaged header",
    b"\x89PNG": "a PNG with a damaged header",
    b"II*\0": TIFF_OTHER,
    b"MM\0*": TIFF_OTHER,
    b"II+\0": TIFF_OTHER,
    b"MM\0+": TIFF_OTHER,
}
"""Names of file types that are not opened, by their first bytes in either case, for the message."""

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
AVIF_BRANDS = (b"avif", b"avis")
HEIF = ("HEIF",)
HEIF_EXTRA, AVIF_EXTRA = "pip install 'ssl-ray[heic]'", "pip install --upgrade pillow"

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that turns a picture upright, by its orientation in EXIF or XMP."""

SIDEWAYS = (5, 6, 7, 8)
"""Orientations that swap width and height."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS decides
warnings.filterwarnings("ignore", module=r"PIL\.")  # about metadata, which is ignored where it is damaged


class TooLargeError(ValueError):
    """A picture has more pixels than `MAX_PIXELS`."""


DEFAULT = Decoding()


@contextmanager
def decoded(data: bytes, decoding: Decoding = DEFAULT) -> Iterator[Image.Image]:
    """Decode as `open_rgb`, and reserve memory for the picture while it is in use.

    Use it when several threads decode. A thread must not hold two pictures at a time.

    Raises:
        ValueError: as `open_rgb`.
    """
    image = _opened(data)
    with room_for(_num_bytes(image)):
        yield _pixels(image, data, decoding)


def open_rgb(data: bytes, decoding: Decoding = DEFAULT) -> Image.Image:
    """Decode to RGB: the first frame, upright, over the background, with 8 bits per channel.

    Raises:
        ValueError: it is not an image, truncated, or too large; the message is one line.
    """
    image = _opened(data)
    with room_for(_num_bytes(image)):
        return _pixels(image, data, decoding)


def upright_size(data: bytes) -> tuple[int, int] | None:
    """Return the width and height of the image that `open_rgb` returns, without decoding it where the format allows that.

    Args:
        data: the file, or the first bytes of a JPEG.

    Returns:
        width and height; None if the bytes are not the beginning of an image.

    Raises:
        TooLargeError: it has more than `MAX_PIXELS`.
    """
    try:
        image = _opened(data)
        if image.format in ("PNG", "HEIF"):  # orientation after the pixels, or a declared size that differs
            with room_for(_num_bytes(image)):
                image = _loaded(image, data)
    except TooLargeError:
        raise
    except Exception:  # as in _pixels
        return None
    is_sideways = orientation_of(image) in SIDEWAYS
    if image.format == "TIFF":  # Pillow has already applied EXIF's orientation to the size, but not XMP's
        is_sideways = is_sideways and getattr(image, "tag_v2", {}).get(ORIENTATION) not in SIDEWAYS
    return (image.height, image.width) if is_sideways else image.size


def _refused(error: Exception, data: bytes) -> ValueError:
    """Turn any error of decoding into one with a one-line message."""
    if isinstance(error, TooLargeError):
        return error
    what = "no data" if not data else " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"cannot be decoded: {what}")


def _opened(data: bytes) -> Image.Image:
    """Open a file. If that fails, try again without metadata that cannot be parsed.

    Raises:
        ValueError: it is not an image, or too large.
    """
    try:
        return _open(data)
    except MemoryError:
        raise
    except Exception as error:
        bare = None if isinstance(error, TooLargeError) else without_metadata(data)
        if bare is not None and bare != data:
            with suppress(Exception):
                return _open(bare)
        raise _refused(error, data) from None


def _open(data: bytes) -> Image.Image:
    brands = _brands(data)
    is_avif = not brands.isdisjoint(AVIF_BRANDS)
    is_heif = not is_avif and not brands.isdisjoint(HEIF_BRANDS)
    if is_heif and not can_read_heif():
        raise ValueError(f"HEIC pictures are read with {HEIF_EXTRA}")
    if is_avif and not can_read_avif():
        raise ValueError(f"AVIF pictures are read with {AVIF_EXTRA}")
    try:
        image = Image.open(io.BytesIO(data), formats=HEIF if is_heif else FORMATS)
    except Image.DecompressionBombError as error:
        pixels = next((f"{int(word):,}" for word in re.findall(r"\d+", str(error))), "too many")
        raise TooLargeError(f"has {pixels} pixels, more than the {MAX_PIXELS:,} allowed; make it smaller") from None
    except UnidentifiedImageError:
        start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()  # a byte order mark
        known = next((name for prefix, name in OTHERS.items() if start.startswith(prefix.lower())), None)
        known = "an AVIF or HEIC file that is damaged, or a video" if brands else known
        what = "it is no picture" if known is None else f"it is {known}"
        raise ValueError(f"{what}; read are {', '.join(FORMATS)} and HEIC" if data else "no data") from None
    if image.width * image.height > MAX_PIXELS:
        raise TooLargeError(f"has {image.width} x {image.height} pixels, more than the {MAX_PIXELS:,} allowed; make it smaller")
    return image


def _brands(data: bytes) -> set[bytes]:
    """Return the major and compatible brands of a file of the ISO base media format; none for other files."""
    if data[4:8] != b"ftyp":
        return set()
    stop = min(int.from_bytes(data[:4], "big"), 256)
    return {data[start : start + 4] for start in (8, *range(16, stop, 4))}


def can_read_avif() -> bool:
    """Return whether the installed Pillow reads AVIF."""
    return bool(features.check("avif"))


def missing_readers() -> dict[str, str]:
    """Return the commands that install missing readers, by suffix."""
    missing = {} if can_read_avif() else {".avif": AVIF_EXTRA}
    return missing if can_read_heif() else missing | {".heic": HEIF_EXTRA, ".heif": HEIF_EXTRA}


def can_read_heif() -> bool:
    """Load the optional reader of HEIC pictures, and return whether it is installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _loaded(image: Image.Image, data: bytes) -> Image.Image:
    """Decode the pixels. If that fails, try again without metadata that cannot be parsed.

    Raises:
        ValueError: its pixels are damaged. Pillow raises nearly anything else.
    """
    try:
        image.load()
    except MemoryError:
        raise
    except Exception:
        bare = without_metadata(data)
        if bare is None or bare == data:
            raise
        image = _open(bare)
        image.load()
    if damage := damage_of(image, data):
        raise ValueError(damage)
    return image


def _pixels(image: Image.Image, data: bytes, decoding: Decoding) -> Image.Image:
    """Decode an opened picture.

    Raises:
        ValueError: it cannot be decoded.
    """
    try:
        raw = raw_mode(image)
        image = _loaded(image, data)
        turn = TURNS.get(orientation_of(image))
        found = to_rgb(image, raw, decoding)
        return found if turn is None else found.transpose(turn)
    except MemoryError:
        if (num_bytes := _num_bytes(image)) < LARGE_BYTES:
            raise
        raise ValueError(
            f"cannot be decoded: {image.width} x {image.height} pixels take {num_bytes >> 20:,} MB, more than there is"
        ) from None
    except Exception as error:  # broken files make Pillow raise nearly anything: OSError, SyntaxError, struct.error, EOFError
        raise _refused(error, data) from None


def _num_bytes(image: Image.Image) -> int:
    """Return the peak memory of decoding, in bytes: pixels as stored, intermediate pixels, and RGB (4 bytes per pixel)."""
    stored = {"1": 1, "L": 1, "P": 1}.get(image.mode, 2 if image.mode.startswith("I;16") else 4)
    between = 5 if has_alpha(image) else stored + 1 if is_deep(image) else 0
    return image.width * image.height * (stored + between + (0 if image.mode == "RGB" else 4))


def whole(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """The view without randomness: uint8 [size, size, 3].

    `center` takes the middle square of size / (size + 32) of the short side, bicubic, as the released code does at
    evaluation, or of `crop_share`; `whole` takes all of the image; `fit` keeps its aspect, and fills what is left over at the
    right or below with the mean colour.
    """
    size = preprocess.size
    if preprocess.crop == "fit":
        inner = fit_size(*image.size, size)
        square = np.empty((size, size, 3), np.uint8)
        square[:] = mean_colour(preprocess)
        if image.size != inner:
            image = image.resize(inner, Image.Resampling[preprocess.interpolation.upper()])
        square[: inner[1], : inner[0]] = np.asarray(image, np.uint8)
        return square
    box = None
    if preprocess.crop == "center":
        side = (preprocess.crop_share or size / (size + 32)) * min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
    if image.size != (size, size) or box is not None:
        image = image.resize((size, size), Image.Resampling[preprocess.interpolation.upper()], box=box)
    return np.asarray(image, np.uint8)


def fit_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height of an image whose longer side is brought to `size`; at least one pixel each."""
    scale = size / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def mean_colour(preprocess: Preprocess) -> np.ndarray:
    """uint8 [3]: what normalisation takes to zero."""
    return np.round(np.array(preprocess.mean) * 255).astype(np.uint8)


def resized_crop(image: Image.Image, size: int, draw: np.random.Generator, least: float = 0.08) -> np.ndarray:
    """The Inception crop: a share of `least` to 1 of the area at an aspect of 3/4 to 4/3, uint8 [size, size, 3].

    Ten tries, then the middle: the usual form of ImageNet training, which the released code uses too.
    """
    width, height = image.size
    for _ in range(10):
        area = draw.uniform(least, 1.0) * width * height
        aspect = np.exp(draw.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draw.integers(0, width - w + 1)), int(draw.integers(0, height - h + 1))
            break
    else:
        w = h = min(width, height)
        left, top = (width - w) // 2, (height - h) // 2
    box = (left, top, left + w, top + h)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box), np.uint8)
