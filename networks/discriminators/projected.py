"""Projected discriminators: heads on features of a frozen vision transformer, as in StyleGAN-T (arXiv 2301.09515)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import ShapeError
from common.registry import Registry
from common.resize import resize_images
from common.value_range import signed_to_unit
from networks.discriminators.backbone import TappedViT
from networks.discriminators.diffaug import augment
from networks.discriminators.heads import DiscriminatorHead
from networks.encoders.base import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class ProjectedKind:
    """What sets one published projected discriminator apart from another.

    Args:
        gelu: activation of the frozen backbone, `gelu` or `gelu_tanh`.
        norm_eps: added to the variance in the local batch norms of the heads.
        embedding_first: the first head reads the embedding and the others the blocks; else the last one reads it.
        shrinking, enlarging: how images are resized to the backbone's side; None: by the run's interpolation.
    """

    gelu: str
    norm_eps: float
    embedding_first: bool
    shrinking: str | None = None
    enlarging: str | None = None


PROJECTED_KINDS: Registry = Registry(
    "projected discriminator",
    {
        "stylegan_t": ProjectedKind("gelu", norm_eps=1e-5, embedding_first=False),
        "vfmtok": ProjectedKind("gelu_tanh", 1e-6, embedding_first=True, shrinking="area", enlarging="bicubic"),
    },
)


class ProjectedDiscriminator(nn.Module):
    """images -> augmentation -> crop or resize -> frozen features of five depths -> one head each -> logits.

    Args:
        kind: which one.
        backbone: the frozen network, with the kind's GELU.
        interpolation: how images are resized to its side where the kind does not say, `bilinear` or `bicubic`.
        policy: operations of the differentiable augmentation; none: no augmentation.
        p_crop: probability that images larger than the backbone's side are cropped instead of resized.
        label_dim: width of the labels; 0 for none.
    """

    def __init__(
        self,
        kind: ProjectedKind,
        backbone: TappedViT,
        interpolation: str,
        policy: Sequence[str],
        p_crop: float,
        label_dim: int = 0,
    ):
        super().__init__()
        self.kind = kind
        self.backbone = backbone
        self.interpolation = interpolation
        self.policy = tuple(policy)
        self.p_crop = p_crop
        depths = len(backbone.taps) + 1
        self.heads = nn.ModuleList(
            DiscriminatorHead(backbone.channels, label_dim, kind.norm_eps) for _ in range(depths)
        )
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(
        self,
        images: Tensor,
        label: Tensor | None = None,
        generator: torch.Generator | None = None,
        update_norms: bool = False,
    ) -> Tensor:
        """Square images [B, 3, S, S] in [-1, 1] -> logits [B, depths * patches], fp32; see `Discriminators`."""
        if images.shape[-1] != images.shape[-2]:
            raise ShapeError(f"projected discriminator: found images {list(images.shape)}, expected square ones.")
        if generator is not None:
            images = augment(images, self.policy, generator)
        features = self._features(self._fit(signed_to_unit(images), generator))
        logits = [head(x, label, update_norms) for head, x in zip(self.heads, features, strict=True)]
        return torch.cat([x.flatten(1) for x in logits], dim=1).float()

    def _features(self, pixels: Tensor) -> list[Tensor]:
        """Pixels [B, 3, side, side] in [0, 1] -> what each head reads, [B, C, N]."""
        *of_blocks, embedding = self.backbone((pixels - self.pixel_mean) / self.pixel_std)
        return [embedding, *of_blocks] if self.kind.embedding_first else [*of_blocks, embedding]

    def _fit(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Bring images to the backbone's side: larger ones are resized or, at times, cropped."""
        side, margin = self.backbone.side, images.shape[-1] - self.backbone.side
        if margin <= 0 or generator is None or not _happens(self.p_crop, generator):
            chosen = self.kind.shrinking if margin > 0 else self.kind.enlarging
            return resize_images(images, chosen or self.interpolation, size=side)
        row, column = torch.randint(margin + 1, (2,), generator=generator, device=generator.device).tolist()
        return images[..., row : row + side, column : column + side]  # one place for the whole batch


def _happens(probability: float, generator: torch.Generator) -> bool:
    return torch.rand((), generator=generator, device=generator.device).item() < probability
