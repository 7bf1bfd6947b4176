"""Image bytes -> RGB pixels. Whatever is stored, the result is uint8 RGB or a `BadSample` with its kind."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.skips import BadSample

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
"""Images inside shards, in order of preference when a sample has more than one."""

_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_CONVERSIONS = {
    "1": "grey",
    "L": "grey",
    "P": "palette",
    "PA": "palette",
    "LA": "alpha",
    "La": "alpha",
    "RGBA": "alpha",
    "RGBa": "alpha",
    "RGBX": "alpha",
    "CMYK": "CMYK",
}


@dataclass(frozen=True)
class DecodedImage:
    """An image in RGB.

    Args:
        pixels: [H, W, 3] uint8.
        conversions: what had to be done to get there ("grey", "palette", "alpha", "CMYK", "16-bit", "one pixel
            wide", "mode ..."); empty for most images.
    """

    pixels: np.ndarray
    conversions: tuple[str, ...] = ()


def decode_image(content: bytes) -> DecodedImage:
    """Decode an image file.

    Grey levels are repeated, palettes looked up, alpha is dropped, 16-bit levels are scaled (v / 257); stored
    orientation flags are ignored, as in the published training.

    Raises: BadSample of the kinds "not an image", "truncated image", "damaged image", "decompression bomb" (more
        than twice `PIL.Image.MAX_IMAGE_PIXELS`) and "float image" (levels without a known range).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns of large images and odd palettes; both are handled here
        try:
            image = Image.open(io.BytesIO(content))
            image.load()
            pixels = _to_rgb(image)
        except BadSample:
            raise
        except UnidentifiedImageError as error:
            raise BadSample("not an image", "empty file" if not content else "") from error
        except Image.DecompressionBombError as error:
            raise BadSample("decompression bomb", str(error)) from error
        except Exception as error:  # image decoders raise whatever they like; all of it means: this file is bad
            raise BadSample(_kind_of_damage(error), str(error)) from error
    conversions = [] if image.mode == "RGB" else [_conversion(image.mode)]
    if min(image.size) == 1:
        conversions.append("one pixel wide")
    return DecodedImage(pixels, tuple(conversions))


def image_size(header: bytes) -> tuple[int, int]:
    """(width, height) from the first bytes of an image file, without decoding it.

    Raises: BadSample if these bytes do not tell.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(header)) as image:
                return image.size
        except Exception as error:  # as above
            raise BadSample("not an image", str(error)) from error


def _conversion(mode: str) -> str:
    return "16-bit" if mode in _SIXTEEN_BIT_MODES else _CONVERSIONS.get(mode, f"mode {mode}")


def _kind_of_damage(error: Exception) -> str:
    return "truncated image" if "truncated" in str(error).lower() else "damaged image"


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode in _SIXTEEN_BIT_MODES:
        levels = np.asarray(image).astype(np.float64) / 257
        grey = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise BadSample("float image", "levels without a known range")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
