"""Whatever a heap of images holds: decoded as a person sees it, or refused with a reason."""

from __future__ import annotations

import struct
import sys
import threading
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_ray.config import override
from ssl_ray.data.shards import decode_all
from ssl_ray.errors import ConfigError
from ssl_ray.settings.views import Preprocess
from ssl_ray.views import decode, memory
from ssl_ray.views.channels import RANGE_USED, Decoding
from ssl_ray.views.decode import TooLargeError, decoded, open_rgb, upright_size, whole
from tests.pictures import encoded, exif, halves, png, png_chunk, profile, ramp, tiff, with_chunk, xmp


def png_header(width: int, height: int) -> bytes:
    """A valid PNG that claims a size and holds next to nothing: a decompression bomb."""
    return png(width, height, 8, 2, [b""] * 1000)


class TestKept:
    def test_cmyk(self) -> None:
        image = open_rgb(encoded(halves().convert("CMYK"), "JPEG", quality=95))
        assert image.mode == "RGB"
        assert np.asarray(image)[10, 5, 0] > 200

    def test_sixteen_bits_are_scaled_not_cut_off(self) -> None:
        ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
        found = np.asarray(open_rgb(encoded(Image.fromarray(ramp))))[..., 0]
        np.testing.assert_allclose(found, np.arange(256).reshape(16, 16), atol=1)

    def test_the_first_frame_of_an_animation(self) -> None:
        frames = [halves(), Image.new("RGB", (40, 20), "white")]
        data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
        found = np.asarray(open_rgb(data))
        assert found[10, 5, 0] > 200
        assert found[10, 5, 1] < 50

    def test_a_palette(self) -> None:
        assert np.asarray(open_rgb(encoded(halves().convert("P"))))[10, 5, 0] > 200

    def test_one_pixel(self) -> None:
        pixels = whole(open_rgb(encoded(Image.new("RGB", (1, 1), (9, 99, 199)))), Preprocess(size=8))
        assert (pixels == (9, 99, 199)).all()

    def test_long_and_thin(self) -> None:
        image = Image.new("RGB", (20_000, 4), (10, 20, 30))
        assert whole(open_rgb(encoded(image)), Preprocess(size=16)).shape == (16, 16, 3)

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF"])
    def test_formats(self, format: str) -> None:
        assert open_rgb(encoded(halves(), format)).size == (40, 20)


class TestRefused:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "no data"),
            (b"GIF89a", "cannot be decoded"),
            (encoded(halves())[:60], "cannot be decoded"),
            (encoded(Image.effect_noise((200, 200), 60).convert("RGB"), "JPEG")[:4000], "cannot be decoded"),
            (b"<svg></svg>", "it is SVG"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is EPS"),
            (b"%PDF-1.7\n", "it is PDF"),
            (b"\xef\xbb\xbf\n<!doctype html>", "it is HTML"),
            (b"\1\0\t\0\0\3", "it is WMF"),
            (b"MM\0+\0\x08\0\0", "it is a TIFF that is damaged, or of a kind"),
            (b"SIMPLE  =                    T", "it is FITS"),
            (b"plain text", "it is no picture; read are JPEG, PNG"),
            (png_header(60_000, 60_000), "has 3,600,000,000 pixels, more than the 178,956,970 allowed"),
            (png_header(13_500, 13_500), "has 182,250,000 pixels, more than the 178,956,970 allowed"),
            (b"\xff\xd8\xff" + b"\0" * 100, "cannot be decoded"),
        ],
        ids=["empty", "header only", "cut png", "cut jpeg", "svg", "eps", "pdf", "html", "wmf", "bigtiff", "fits", "text", "bomb",
             "small bomb", "zeros"],
    )  # fmt: skip
    def test_with_one_line(self, data: bytes, reason: str) -> None:
        with pytest.raises(ValueError, match=reason) as caught:
            open_rgb(data)
        assert "\n" not in str(caught.value)

    def test_neighbours_live(self) -> None:
        data = [encoded(halves()), b"", encoded(halves()), b"x" * 10]
        images, failures = decode_all(data, Preprocess(size=8))
        assert [position for position, _ in failures] == [1, 3]
        assert images[0].any()
        assert images[2].any()
        assert not images[1].any()


def test_random_damage_never_raises_anything_else() -> None:
    """A few thousand broken files: each is decoded or refused, and nothing else happens."""
    good = [encoded(halves(), format) for format in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")]
    draw = np.random.default_rng(0)
    refused = 0
    for number in range(1500):
        data = bytearray(good[number % len(good)])
        for _ in range(int(draw.integers(1, 8))):
            data[int(draw.integers(len(data)))] = int(draw.integers(256))
        try:
            whole(open_rgb(bytes(data[: int(draw.integers(1, len(data) + 1))])), Preprocess(size=8))
        except ValueError:
            refused += 1
    assert refused > 300


PNG = encoded(halves())
EXIF = b"Exif\0\0" + exif(6).tobytes().removeprefix(b"Exif\0\0")
UPRIGHT = {
    "JPEG": encoded(halves(), "JPEG", exif=exif(6)),
    "MPO": encoded(halves(), "MPO", exif=exif(6), save_all=True, append_images=[Image.new("RGB", (16, 12))]),
    "PNG": encoded(halves(), exif=exif(6)),
    "WebP": encoded(halves(), "WEBP", exif=exif(6)),
    "AVIF": encoded(halves(), "AVIF", exif=exif(6)),
    "TIFF": encoded(halves(), "TIFF", exif=exif(6)),
    "TIFF, compressed": encoded(halves(), "TIFF", exif=exif(6), compression="tiff_lzw"),
    "JPEG, XMP": encoded(halves(), "JPEG", xmp=xmp(6)),
    "JPEG, XMP in single quotes": encoded(halves(), "JPEG", xmp=xmp(6, "'")),
    "WebP, XMP": encoded(halves(), "WEBP", xmp=xmp(6)),
    "TIFF, XMP": encoded(halves(), "TIFF", tiffinfo={700: xmp(6)}),
    "TIFF, XMP in single quotes": encoded(halves(), "TIFF", tiffinfo={700: xmp(6, "'")}),
    "PNG, XMP": with_chunk(PNG, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6)),
    "PNG, XMP behind the pixels": with_chunk(PNG, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6), late=True),
    "PNG, EXIF behind the pixels": with_chunk(PNG, b"eXIf", EXIF[6:], late=True),
    "PNG, profile exif": with_chunk(PNG, b"tEXt", profile("exif", EXIF)),
    "PNG, profile APP1": with_chunk(PNG, b"tEXt", profile("APP1", EXIF)),
    "PNG, profile APP1 behind the pixels": with_chunk(PNG, b"tEXt", profile("APP1", EXIF), late=True),
    "PNG, profile xmp": with_chunk(PNG, b"tEXt", profile("xmp", xmp(6))),
    "PNG, EXIF beside a text of 3 MB": with_chunk(
        with_chunk(PNG, b"eXIf", EXIF[6:], late=True), b"zTXt", b"c\0\0" + zlib.compress(bytes(3 << 20))
    ),
}


class TestOrientation:
    @pytest.mark.parametrize("name", UPRIGHT)
    def test_is_applied_once(self, name: str) -> None:
        image = open_rgb(UPRIGHT[name])
        assert image.size == (20, 40)
        assert np.asarray(image)[5, 10, 0] > 200, "what is stored on the left stands above"

    @pytest.mark.parametrize("name", UPRIGHT)
    def test_size_is_that_of_the_pixels(self, name: str) -> None:
        assert upright_size(UPRIGHT[name]) == (20, 40)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_all_eight(self, orientation: int) -> None:
        """As Pillow's own function has it."""
        from PIL import ImageOps

        image = Image.effect_noise((12, 8), 90).convert("RGB")
        image.getexif()[0x0112] = orientation
        found = open_rgb(encoded(image, exif=image.getexif()))
        assert (np.asarray(found) == np.asarray(ImageOps.exif_transpose(image))).all()

    def test_exif_outranks_xmp(self) -> None:
        assert open_rgb(encoded(halves(), "JPEG", exif=exif(3), xmp=xmp(6))).size == (40, 20)

    def test_of_a_container_counts_what_the_container_says(self) -> None:
        assert open_rgb(encoded(halves(), "AVIF", xmp=xmp(6))).size == (40, 20)

    def test_of_heic_is_applied_once(self) -> None:
        pytest.importorskip("pillow_heif").register_heif_opener()
        image = open_rgb(encoded(halves(), "HEIF", exif=exif(6).tobytes()))
        assert image.size == (20, 40)
        assert np.asarray(image)[5, 10, 0] > 200


def damaged_crc(kind: bytes, data: bytes) -> bytes:
    return with_chunk(PNG, kind, data).replace(png_chunk(kind, data), png_chunk(kind, data)[:-1] + b"?")


def with_tiff_tag(tag: int, kind: int, value: int) -> bytes:
    """A TIFF in which a tag of metadata points nowhere."""
    data = bytearray(encoded(halves(), "TIFF", tiffinfo={305: "software"}))
    (directory,) = struct.unpack_from("<I", data, 4)
    for entry in range(directory + 2, directory + 2 + 12 * struct.unpack_from("<H", data, directory)[0], 12):
        if struct.unpack_from("<H", data, entry)[0] == 305:
            struct.pack_into("<HHII", data, entry, tag, kind, 1, value)
    return bytes(data)


HUGE = zlib.compress(bytes(3 << 20))
AVIF = encoded(halves(), "AVIF", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")


@pytest.mark.parametrize(
    "data",
    [
        with_chunk(PNG, b"zTXt", b"c\0\0" + HUGE),
        with_chunk(PNG, b"zTXt", b"c\0\0" + HUGE, late=True),
        with_chunk(PNG, b"zTXt", b"c\0\7" + HUGE),
        with_chunk(PNG, b"iCCP", b"icc\0\0" + HUGE),
        with_chunk(PNG, b"iCCP", b"icc\0\1"),
        with_chunk(PNG, b"iCCP", b""),
        with_chunk(PNG, b"gAMA", b"1"),
        with_chunk(PNG, b"eXIf", b"garbage"),
        damaged_crc(b"tEXt", b"Comment\0a"),
        encoded(halves(), "JPEG", exif=b"Exif\0\0II*\0garbage"),
        encoded(halves(), "JPEG", icc_profile=b"garbage"),
        encoded(halves(), "WEBP", exif=b"Exif\0\0garbage"),
        AVIF.replace(b"MM\0*", b"garb"),
        with_tiff_tag(34853, 4, 0x7FFFFFFF),
        with_tiff_tag(34665, 2, 5),
        with_tiff_tag(700, 4, 8),
    ],
    ids=["zTXt", "late zTXt", "method", "iCCP", "iCCP method", "empty iCCP", "gAMA", "eXIf", "crc", "JPEG EXIF", "JPEG ICC",
         "WebP EXIF", "AVIF EXIF", "TIFF GPS", "TIFF EXIF", "TIFF XMP"],
)  # fmt: skip
def test_metadata_never_costs_the_picture(data: bytes) -> None:
    found = np.asarray(open_rgb(data))
    assert found.shape == (20, 40, 3)
    assert found[10, 5, 0] > 200
    assert upright_size(data) == (40, 20)


ALPHA = np.zeros((28, 28), np.uint8)
ALPHA[4:24, 12:16] = 255
BAR = ALPHA > 0
BLACK = np.zeros((28, 28, 3), np.uint8)
PALETTE = Image.fromarray(BAR.astype(np.uint8)).convert("P")
PALETTE.putpalette([0] * 768)
RGBA, LA = Image.fromarray(np.dstack([BLACK, ALPHA])), Image.merge("LA", [Image.new("L", (28, 28)), Image.fromarray(ALPHA)])


def packed(depth: int, key: int) -> list[bytes]:
    """Rows of few bits: black in the bar, the transparent gray elsewhere."""
    bits = np.unpackbits(np.where(BAR, 0, key).astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
    return [np.packbits(row.reshape(-1)).tobytes() for row in bits]


def gray_png(depth: int, key: int) -> bytes:
    if depth < 8:
        rows = packed(depth, key)
    else:
        rows = [np.where(row, 0, key).astype(">u2" if depth == 16 else np.uint8).tobytes() for row in BAR]
    return png(28, 28, depth, 0, rows, png_chunk(b"tRNS", struct.pack(">H", key)))


def color_png(depth: int, key: int) -> bytes:
    rows = [np.repeat(np.where(row, 0, key).astype(">u2" if depth == 16 else np.uint8), 3).tobytes() for row in BAR]
    return png(28, 28, depth, 2, rows, png_chunk(b"tRNS", struct.pack(">HHH", key, key, key)))


def deep_alpha(channels: int) -> bytes:
    deep = np.dstack([*[np.zeros((28, 28))] * (channels - 1), ALPHA * 257.0]).astype(">u2")
    return png(28, 28, 16, {2: 4, 4: 6}[channels], [row.tobytes() for row in deep])


TRANSPARENT = {
    "RGBA, PNG": encoded(RGBA),
    "RGBA, WebP": encoded(RGBA, "WEBP", lossless=True, exact=True),
    "RGBA, AVIF": encoded(RGBA, "AVIF"),
    "RGBA, JPEG 2000": encoded(RGBA, "JPEG2000"),
    "RGBA, TIFF": encoded(RGBA, "TIFF"),
    "RGBA, multiplied, TIFF": tiff(np.dstack([BLACK, ALPHA]), photometric=2, extra=1),
    "RGBA of 16 bits, PNG": deep_alpha(4),
    "LA, PNG": encoded(LA),
    "LA, TIFF": encoded(LA, "TIFF"),
    "LA of 16 bits, PNG": deep_alpha(2),
    "an entry of a palette, PNG": encoded(PALETTE, transparency=0),
    "entries of a palette, PNG": encoded(PALETTE, transparency=bytes([0, 255])),
    "GIF": encoded(PALETTE, "GIF", transparency=0),
    "a gray of 1 bit": gray_png(1, 1),
    "a gray of 2 bits": gray_png(2, 2),
    "a gray of 4 bits": gray_png(4, 3),
    "a gray of 8 bits": gray_png(8, 7),
    "a gray of 16 bits": gray_png(16, 700),
    "a color of 8 bits": color_png(8, 7),
    "a color of 16 bits": color_png(16, 700),
}


class TestTransparency:
    @pytest.mark.parametrize("name", TRANSPARENT)
    def test_shows_white(self, name: str) -> None:
        found = np.asarray(open_rgb(TRANSPARENT[name]))
        assert (found[BAR] < 8).all()
        assert (found[~BAR] == 255).all()

    @pytest.mark.parametrize("name", TRANSPARENT)
    def test_shows_the_ground_of_the_settings(self, name: str) -> None:
        assert tuple(np.asarray(open_rgb(TRANSPARENT[name], Decoding(background=(9, 99, 199))))[0, 0]) == (9, 99, 199)

    def test_hides_what_an_editor_left_below(self) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (28, 28, 3)).astype(np.uint8)
        found = np.asarray(open_rgb(encoded(Image.fromarray(np.dstack([noise, ALPHA])))))
        assert (found[~BAR] == 255).all()

    @pytest.mark.parametrize(("color", "extra"), [(200, 2), (100, 1)], ids=["straight", "multiplied"])
    def test_half_is_a_mixture(self, color: int, extra: int) -> None:
        pixels = np.dstack([np.full((8, 8, 3), color, np.uint8), np.full((8, 8), 128, np.uint8)])
        found = np.asarray(open_rgb(tiff(pixels, photometric=2, extra=extra)), int)
        np.testing.assert_allclose(found, 200 * 128 / 255 + 255 * 127 / 255, atol=1.5)

    def test_leaves_opaque_colors_as_they_are(self) -> None:
        opaque = halves().convert("RGBA")
        assert (np.asarray(open_rgb(encoded(opaque))) == np.asarray(halves())).all()


TO_255 = np.rint(np.linspace(0, 255, 64 * 64)).reshape(64, 64)
RAMPS = {
    "16 bits, PNG": encoded(Image.fromarray(ramp(0, 65535, np.uint16))),
    "16 bits, TIFF": tiff(ramp(0, 65535, np.uint16)),
    "16 bits, TIFF, white is zero": tiff(ramp(65535, 0, np.uint16), photometric=0),
    "16 bits, JPEG 2000": encoded(Image.fromarray(ramp(0, 65535, np.uint16)), "JPEG2000"),
    "16 bits, PGM": b"P5 64 64 65535\n" + ramp(0, 65535, ">u2").tobytes(),
    "12 bits, PGM": b"P5 64 64 4095\n" + ramp(0, 4095, ">u2").tobytes(),
    "floating point, TIFF": tiff(ramp(0, 1, np.float32), sample_format=3),
    "floating point, TIFF, white is zero": tiff(ramp(1, 0, np.float32), photometric=0, sample_format=3),
}
WITH_RANGE = {
    "12 in 16 bits": (encoded(Image.fromarray(ramp(0, 4095, np.uint16))), (0, 4095)),
    "integers of 32 bits": (tiff(ramp(0, 255, np.int32), sample_format=2), (0, 255)),
    "integers of 32 bits without a sign": (tiff(ramp(0, 2**32 - 1, np.uint32)), (0, 2**32 - 1)),
    "bytes with a sign": (tiff(ramp(-128, 127, np.int8), sample_format=2), (-128, 127)),
    "integers with a sign": (tiff(ramp(-1000, 3000, np.int16), sample_format=2), (-1000, 3000)),
    "floating point": (tiff(ramp(0, 3000, np.float32), sample_format=3), (0, 3000)),
}


class TestDeepPixels:
    @pytest.mark.parametrize("name", RAMPS)
    def test_a_ramp_stays_a_ramp(self, name: str) -> None:
        np.testing.assert_allclose(np.asarray(open_rgb(RAMPS[name]))[..., 0], TO_255, atol=1)

    @pytest.mark.parametrize("name", WITH_RANGE)
    def test_a_range_of_the_settings(self, name: str) -> None:
        data, ends = WITH_RANGE[name]
        np.testing.assert_allclose(np.asarray(open_rgb(data, Decoding(range=ends)))[..., 0], TO_255, atol=1)

    @pytest.mark.parametrize("name", [name for name in WITH_RANGE if name != "12 in 16 bits"])
    def test_without_a_usual_range_are_refused_with_the_setting(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"nothing tells what is black and white; .* images\.range="):
            open_rgb(WITH_RANGE[name][0])

    def test_what_is_no_number_is_black_and_infinity_white(self) -> None:
        pixels = ramp(0, 1, np.float32)
        pixels[0, :3] = np.nan, np.inf, -np.inf
        assert np.asarray(open_rgb(tiff(pixels, sample_format=3)))[0, :3, 0].tolist() == [0, 255, 0]

    def test_none_of_them_a_number(self) -> None:
        with pytest.raises(ValueError, match="none of its pixels is a number"):
            open_rgb(tiff(np.full((8, 8), np.nan, np.float32), sample_format=3))

    def test_of_colors_have_no_range(self) -> None:
        with pytest.raises(ValueError, match=r"images\.range holds for gray pictures"):
            open_rgb(color_png(16, 700), Decoding(range=(0, 4095)))

    def test_say_how_much_of_their_range_they_use(self) -> None:
        used = open_rgb(WITH_RANGE["12 in 16 bits"][0]).info[RANGE_USED]
        assert used == pytest.approx(4095 / 65535, abs=1 / 255)

    def test_of_8_bits_say_nothing(self) -> None:
        assert RANGE_USED not in open_rgb(encoded(Image.new("L", (8, 8)))).info

    @pytest.mark.parametrize("ends", ["[1, 0]", "[0, 0]", "[0, Infinity]", "[0]"])
    def test_a_range_ascends(self, ends: str) -> None:
        import json

        with pytest.raises(ConfigError, match="range"):
            override(Decoding(), {"range": json.loads(ends)})


def test_heic_without_its_reader_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ValueError, match=r"HEIC pictures are read with pip install 'ssl-ray\[heic\]'"):
        open_rgb(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


def test_the_size_of_a_picture_that_is_too_large_is_an_error() -> None:
    with pytest.raises(TooLargeError, match="more than the"):
        upright_size(png_header(13_500, 13_500))


class TestMemory:
    def test_pictures_beyond_the_budget_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Four threads, and a budget for two pictures."""
        image = Image.new("L", (1000, 1000))
        data, together, most, lock = encoded(image), 0, 0, threading.Lock()
        monkeypatch.setattr(memory, "IN_FLIGHT", memory.ByteBudget(2 * decode._num_bytes(image)))

        def use() -> None:
            nonlocal together, most
            with decoded(data):
                with lock:
                    together += 1
                    most = max(most, together)
                time.sleep(0.05)
                with lock:
                    together -= 1

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 2

    def test_a_picture_larger_than_the_budget_goes_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory, "IN_FLIGHT", memory.ByteBudget(2**20))
        assert open_rgb(encoded(Image.new("L", (2000, 1000)))).size == (2000, 1000)

    def test_large_ones_of_a_machine_take_turns(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        """Two budgets, as of two processes, and one slot."""
        monkeypatch.setattr(memory.tempfile, "gettempdir", lambda: str(tmp_path))
        monkeypatch.setattr(memory, "memory_bytes", lambda: memory.SLOT_BYTES)
        order: list[str] = []

        def second() -> None:
            with memory._slot():
                order.append("second")

        with memory._slot():
            thread = threading.Thread(target=second)
            thread.start()
            time.sleep(0.1)
            order.append("first")
        thread.join()
        assert order == ["first", "second"]

    def test_a_large_picture_without_memory_is_refused_with_its_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*_: Any) -> None:
            raise MemoryError

        monkeypatch.setattr(decode, "LARGE_BYTES", 100)
        monkeypatch.setattr(decode, "to_rgb", fails)
        with pytest.raises(ValueError, match=r"40 x 20 pixels take .* MB, more than there is"):
            open_rgb(PNG)
