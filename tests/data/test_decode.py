"""Odd images: converted to RGB and counted, or refused by kind."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.decode import decode_image, image_size
from data.skips import BadSample
from tests.data.sample_files import encoded, pixels_of

RGB = pixels_of("odd", 6, 5)
GREY = RGB[:, :, 0]


def png_with_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with no pixels behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def test_rgb_comes_back_unchanged():
    image = decode_image(encoded(RGB))
    assert image.conversions == () and image.pixels.dtype == np.uint8
    assert np.array_equal(image.pixels, RGB)


def test_grey_is_repeated():
    image = decode_image(encoded(GREY))
    assert image.conversions == ("grey",)
    assert np.array_equal(image.pixels, np.stack([GREY] * 3, -1))


def test_black_and_white_is_grey():
    image = decode_image(encoded(Image.fromarray(GREY > 127)))
    assert image.conversions == ("grey",) and set(np.unique(image.pixels)) == {0, 255}


def test_palette_is_looked_up():
    palette = Image.fromarray(RGB).quantize(16)
    image = decode_image(encoded(palette))
    assert image.conversions == ("palette",)
    assert np.array_equal(image.pixels, np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_not_blended(mode):
    image = Image.fromarray(RGB).convert(mode)
    image.putalpha(7)
    decoded = decode_image(encoded(image))
    assert decoded.conversions == ("alpha",)
    assert np.array_equal(decoded.pixels, np.asarray(image.convert("RGB")))
    assert decoded.pixels.mean() > 50


def test_palette_with_transparency_is_converted_without_a_warning(recwarn):
    palette = Image.fromarray(RGB).quantize(4)
    decoded = decode_image(encoded(palette, transparency=bytes([0, 128, 255, 3])))
    assert decoded.conversions == ("palette",) and not recwarn.list


def test_cmyk_jpeg_is_converted():
    image = decode_image(encoded(Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).convert("CMYK"), "jpeg"))
    assert image.conversions == ("CMYK",) and abs(image.pixels.astype(int) - 200).max() <= 3


def test_sixteen_bits_are_scaled_not_clipped():
    levels = np.array([[0, 257, 128 * 257], [255, 65535, 300]], dtype=np.uint16)
    image = decode_image(encoded(Image.fromarray(levels)))
    assert image.conversions == ("16-bit",)
    assert image.pixels[:, :, 0].tolist() == [[0, 1, 128], [1, 255, 1]]


def test_one_pixel_image_is_counted():
    image = decode_image(encoded(np.full((1, 1, 3), 9, np.uint8)))
    assert image.conversions == ("one pixel wide",) and image.pixels.tolist() == [[[9, 9, 9]]]


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_truncated_image_is_refused(image_format):
    content = encoded(pixels_of("big", 64, 64), image_format)
    with pytest.raises(BadSample) as bad:
        decode_image(content[: len(content) // 2])
    assert bad.value.kind in ("truncated image", "damaged image", "not an image")
    if image_format != "webp":
        assert bad.value.kind == "truncated image"


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff", b"GIF89a"])
def test_other_bytes_are_not_an_image(content):
    with pytest.raises(BadSample) as bad:
        decode_image(content)
    assert bad.value.kind in ("not an image", "truncated image", "damaged image")


def test_decompression_bomb_is_refused():
    with pytest.raises(BadSample) as bad:
        decode_image(png_with_size(100_000, 100_000))
    assert bad.value.kind == "decompression bomb"


def test_float_levels_are_refused():
    with pytest.raises(BadSample) as bad:
        decode_image(encoded(Image.fromarray(GREY.astype(np.float32)), "tiff"))
    assert bad.value.kind == "float image"


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_flipped_byte_never_crashes(offset, value):
    content = bytearray(JPEG)
    content[offset % len(content)] = value
    try:
        image = decode_image(bytes(content))
    except BadSample:
        return
    assert image.pixels.dtype == np.uint8 and image.pixels.shape[2] == 3


JPEG = encoded(RGB, "jpeg")


def test_header_gives_the_size():
    content = encoded(pixels_of("big", 40, 70), "jpeg")
    assert image_size(content[:700]) == (70, 40)
    with pytest.raises(BadSample):
        image_size(content[:10])
    assert image_size(png_with_size(3, 2)) == (3, 2)
