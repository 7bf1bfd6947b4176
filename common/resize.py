"""One rule for resizing images: antialiased exactly when they shrink."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def resize_images(
    images: Tensor, mode: str, *, size: int | tuple[int, int] | None = None, scale_factor: float | None = None
) -> Tensor:
    """Resize [B, C, H, W] images; the value range is kept but for the overshoot of `bicubic`.

    Args:
        mode: `bilinear` or `bicubic`, corners not aligned; or with `size`, `area`: means over the pixels that each new
            one covers.
        size: target side or (height, width); antialiased if its width is below the present one.
        scale_factor: used instead of `size`; output sides are floor(side * factor), antialiased below 1.
    """
    assert (size is None) != (scale_factor is None), "give either size or scale_factor"
    if scale_factor is not None:
        return F.interpolate(
            images, scale_factor=scale_factor, mode=mode, align_corners=False, antialias=scale_factor < 1
        )
    height, width = (size, size) if isinstance(size, int) else size
    if (height, width) == tuple(images.shape[-2:]):
        return images
    if mode == "area":
        return F.interpolate(images, size=(height, width), mode=mode)
    antialias = width < images.shape[-1]
    return F.interpolate(images, size=(height, width), mode=mode, align_corners=False, antialias=antialias)
