"""A plain second implementation of the decoder without ConvNeXt layers, by the reference's names of weights.

It computes each modulated convolution with the weight of each sample, upsamples by placing zeros, and keeps to torch
functions of the simplest kind, so that it shares nothing with the networks but the formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = Callable[[str, list[int]], Tensor]
FILTER = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64
BLURS = {3: torch.tensor([1.0, 2, 1]), 5: torch.tensor([1.0, 4, 6, 4, 1])}


@dataclass(frozen=True)
class PlainDecoded:
    """Style and images, smallest first."""

    w: Tensor
    images: list[Tensor]


def zeros_between(x: Tensor) -> Tensor:
    """x at the even places of a map of twice its side, zeros elsewhere."""
    out = torch.zeros(x.shape[0], x.shape[1], 2 * x.shape[2], 2 * x.shape[3])
    out[:, :, ::2, ::2] = x
    return out


def filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Correlation of every channel with one kernel, without padding."""
    return torch.cat([F.conv2d(x[:, i : i + 1], kernel[None, None]) for i in range(x.shape[1])], dim=1)


def upsampled(x: Tensor) -> Tensor:
    """The skip path of summed images."""
    return filtered(F.pad(zeros_between(x), (2, 1, 2, 1)), 4 * FILTER)


def dense(x: Tensor, weights: Weights, name: str, n_out: int, multiplier: float) -> Tensor:
    weight = weights(f"{name}.weight", [n_out, x.shape[1]])
    return x @ (weight * multiplier / x.shape[1] ** 0.5).T + weights(f"{name}.bias", [n_out]) * multiplier


def normalised(x: Tensor) -> Tensor:
    return x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()


def styles(w: Tensor, weights: Weights, name: str, channels: int) -> Tensor:
    out = dense(w, weights, f"{name}.affine.proj", 3 * channels, 1.0)
    return out[:, :channels] * out[:, channels : 2 * channels] + out[:, 2 * channels :]


def mapped(pooled: Tensor, c: Tensor | None, weights: Weights, width: int) -> Tensor:
    x = normalised(pooled)
    if c is not None:
        x = torch.cat([x, normalised(dense(c, weights, "mapping.embed", 1024, 1.0))], dim=1)
    x = F.leaky_relu(dense(x, weights, "mapping.mlp.fc0", x.shape[1], 0.01), 0.2)
    weights("mapping.x_avg", [width])
    return dense(x, weights, "mapping.mlp.fc1", width, 0.01)


def branch(z: Tensor, weights: Weights, name: str, mapped_dim: int, side: int) -> Tensor:
    """The latent at the side that a block takes in."""

    def conv3(x: Tensor, index: int, n_out: int) -> Tensor:
        at = f"{name}.{index}"
        x = F.conv2d(x, weights(f"{at}.0.weight", [x.shape[1], 1, 3, 3]), padding=1, groups=x.shape[1])
        x = F.conv2d(x, weights(f"{at}.1.weight", [n_out, x.shape[1], 1, 1]))
        x = F.group_norm(x, min(32, n_out), weights(f"{at}.2.weight", [n_out]), weights(f"{at}.2.bias", [n_out]))
        return F.gelu(x)

    def conv1(x: Tensor, index: int) -> Tensor:
        n, at = x.shape[1], f"{name}.{index}"
        x = F.conv2d(x, weights(f"{at}.0.weight", [n, n, 1, 1]))
        return F.group_norm(x, min(32, n), weights(f"{at}.1.weight", [n]), weights(f"{at}.1.bias", [n]))

    if side < z.shape[2]:
        return conv1(conv3(F.pixel_unshuffle(z, z.shape[2] // side), 1, mapped_dim), 2)
    if side == z.shape[2]:
        return conv1(conv3(z, 0, mapped_dim), 1)
    factor = side // z.shape[2]
    return conv1(F.pixel_shuffle(conv3(z, 0, mapped_dim * factor**2), factor), 2)


def layer(
    x: Tensor, w: Tensor, weights: Weights, name: str, n_out: int, *, up: bool, residual: bool, clamp: float
) -> Tensor:
    """One modulated 3x3 convolution."""
    n_in, side = x.shape[1], x.shape[2] * (2 if up else 1)
    if residual:
        x = F.group_norm(x, 32, weights(f"{name}.norm.weight", [n_in]), weights(f"{name}.norm.bias", [n_in]))
    weight, s = weights(f"{name}.weight", [n_out, n_in, 3, 3]), styles(w, weights, name, n_in)
    rows = []
    for sample, style in zip(x, s, strict=True):
        modulated = weight * style[None, :, None, None]
        modulated = modulated / (modulated.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            # A transposed convolution of stride 2 is the ordinary one with the turned kernel among zeros.
            spread = zeros_between(sample[None])[:, :, :-1, :-1]
            y = F.conv2d(F.pad(spread, (2, 2, 2, 2)), modulated.flip(2, 3))
            rows.append(filtered(F.pad(y, (1, 1, 1, 1)), 4 * FILTER))
        else:
            rows.append(F.conv2d(sample[None], modulated, padding=1))
    y = torch.cat(rows)
    weights(f"{name}.resample_filter", [4, 4])
    y = y + weights(f"{name}.noise_const", [side, side]) * weights(f"{name}.noise_strength", [])
    gain = 1.0 if up else 0.5**0.5
    y = F.leaky_relu(y + weights(f"{name}.bias", [n_out])[None, :, None, None], 0.2) * 2**0.5 * gain
    y = y.clamp(-clamp * gain, clamp * gain)
    return (weights(f"{name}.gamma", [1, n_out, 1, 1]) * y + x) * 2**0.5 if residual else y


def to_rgb(x: Tensor, w: Tensor, weights: Weights, name: str, clamp: float) -> Tensor:
    n = x.shape[1]
    weight, s = weights(f"{name}.weight", [3, n, 1, 1]), styles(w, weights, name, n) / n**0.5
    y = torch.cat([F.conv2d(a[None], weight * b[None, :, None, None]) for a, b in zip(x, s, strict=True)])
    return (y + weights(f"{name}.bias", [3])[None, :, None, None]).clamp(-clamp, clamp)


def skip_upsampled(x: Tensor, weights: Weights, name: str, n_out: int, taps: int) -> Tensor:
    """The skip path of summed features."""
    n = x.shape[1]
    x = F.group_norm(x, min(32, n // 4), weights(f"{name}.norm.weight", [n]), weights(f"{name}.norm.bias", [n]))
    x = F.conv2d(x, weights(f"{name}.depthwise.weight", [n, 1, 3, 3]), padding=1, groups=n)
    x = F.pixel_shuffle(F.conv2d(x, weights(f"{name}.pointwise.weight", [4 * n_out, n, 1, 1])), 2)
    weights(f"{name}.blur_weight", [n_out, 1, taps, taps])
    kernel = torch.outer(BLURS[taps], BLURS[taps])
    return filtered(F.pad(x, (taps // 2,) * 4, mode="replicate"), kernel / kernel.sum())


def plain_decode(z: Tensor, c: Tensor | None, options: dict[str, Any], weights: Weights) -> PlainDecoded:
    """Expanded latent [B, C, h, w] and one-hot classes -> style and images.

    Args:
        options: constructor arguments of the reference's generator.
        weights: gives the weight of a name and shape.
    """
    synthesis, blocks, side = options["synthesis_kwargs"], options["num_blocks"], options["img_resolution"]
    clamp, sums_features = options["conv_clamp"], options["use_multiscale_output"]
    pooled = F.adaptive_avg_pool2d(z, options["z_pooled_resolution"]).flatten(1)
    w = mapped(pooled, c, weights, options["z_dim_for_mapping_mlp_output"])
    x, skip, images = None, None, []
    for k in range(blocks):
        at, resolution = f"synthesis.blocks.{k}", side // 2 ** (blocks - 1 - k)
        width = min(synthesis["channel_base"] // int(resolution / (side / 256)), synthesis["channel_max"])
        inputs = [] if x is None else [x]
        if k in options["concat_z_block_indices"]:
            dim = options["concat_z_mapped_dims"][k]
            inputs.append(branch(z, weights, f"synthesis.z_convs.{k}", dim, resolution // 2))
        x = layer(torch.cat(inputs, 1), w, weights, f"{at}.conv0", width, up=True, residual=False, clamp=clamp)
        for j in range(2 * synthesis["num_res_blocks"]):
            x = layer(x, w, weights, f"{at}.convs1.{j}", width, up=False, residual=j % 2 == 1, clamp=clamp)
        weights(f"{at}.resample_filter", [4, 4])
        if sums_features:
            taps = 3 if k <= 2 else 5
            up = None if skip is None else skip_upsampled(skip, weights, f"{at}.last_upsample_conv", width, taps)
            skip = x if up is None else up + x
            images.append(to_rgb(skip, w, weights, f"{at}.torgb", clamp))
        else:
            image = to_rgb(x, w, weights, f"{at}.torgb", clamp)
            images.append(image if not images else upsampled(images[-1]) + image)
    return PlainDecoded(w, images)
