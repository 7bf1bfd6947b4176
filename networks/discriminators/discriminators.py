"""All discriminators of a run behind one call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.precision import full_precision
from networks.config import DiscriminatorConfig
from networks.discriminators.backbone import TappedViT
from networks.discriminators.patchgan import PatchGAN
from networks.discriminators.projected import PROJECTED_KINDS, ProjectedDiscriminator
from networks.discriminators.stylegan2 import StyleGAN2Discriminator
from networks.interfaces import Verdict


class Discriminators(nn.Module):
    """The projected discriminator, the PatchGAN and the StyleGAN2-like one, as far as the configuration has them.

    They compute in fp32, as published, whatever the precision of the tokenizer, and also under autocast: their spectral
    and batch norms divide by estimates, which rounding would disturb.

    Args:
        config: which ones, and their options.
        interpolation: how the projected discriminator resizes images, `bilinear` or `bicubic`.
        backbone: its frozen network; None without it.
        label_dim: width of the labels that it is conditioned on; 0 for none.
        resolution: side of the images in pixels, which the StyleGAN2-like discriminator is built for.
    """

    def __init__(
        self,
        config: DiscriminatorConfig,
        interpolation: str,
        backbone: TappedViT | None = None,
        label_dim: int = 0,
        resolution: int | None = None,
    ):
        super().__init__()
        self.projected, self.patchgan, self.stylegan2 = None, None, None
        if config.use_stylegan_t_discriminator:
            assert backbone is not None, "the projected discriminator stands on a backbone"
            policy = config.diffaug_policy if config.diffaug else ()
            kind = PROJECTED_KINDS[config.projected_kind]
            self.projected = ProjectedDiscriminator(kind, backbone, interpolation, policy, config.p_crop, label_dim)
        if config.use_patchgan_discriminator:
            self.patchgan = PatchGAN(config.get_interm_feat)
        if config.use_stylegan2_discriminator:
            assert resolution is not None, "the StyleGAN2-like discriminator is built for one image side"
            self.stylegan2 = StyleGAN2Discriminator(resolution)

    def trainable_parts(self) -> nn.ModuleDict:
        """Everything but the frozen backbone."""
        parts = nn.ModuleDict()
        if self.projected is not None:
            parts["projected"] = nn.ModuleDict({"heads": self.projected.heads})
        if self.patchgan is not None:
            parts["patchgan"] = self.patchgan
        if self.stylegan2 is not None:
            parts["stylegan2"] = self.stylegan2
        return parts

    def compile_parts(self) -> None:
        """Compile the networks, but neither the augmentation, which asks a generator, nor the small heads.

        The spectral norms of a head advance in place from one pass to the next, and a compiled program would keep them
        as they are, without the copies that the backward pass of the pass before needs.
        """
        backbone = None if self.projected is None else self.projected.backbone
        for network in (backbone, self.patchgan, self.stylegan2):
            if network is not None:
                network.compile(dynamic=False)

    def forward(
        self,
        images: Tensor,
        label: Tensor | None = None,
        generator: torch.Generator | None = None,
        update_norms: bool = False,
    ) -> Verdict:
        """What the discriminators say of a batch of images.

        Gradients flow to the images; the caller decides whether they are wanted (generator phase) or not (detached
        images, or `torch.no_grad`).

        Args:
            images: [B, 3, S, S] in [-1, 1]; B is at most 8, or cut into equal groups of at most 8 for the norms.
            label: [B, label_dim], for the projected discriminator; ignored without `label_dim`.
            generator: source of the augmentation and of the crops; None: neither, the whole image as it is. One on
                the CPU gives the same draws on every device and makes nobody wait for a GPU. Real and decoded
                images each need a generator of their own, for independent draws.
            update_norms: advance the power iteration of the spectral norms by one step.

        Raises: ShapeError if the images are not square, or too many for equal groups.
        """
        images = images.float()
        with full_precision(images.device):
            return Verdict(
                projected=None if self.projected is None else self.projected(images, label, generator, update_norms),
                patches=None if self.patchgan is None else self.patchgan(images),
                whole=None if self.stylegan2 is None else self.stylegan2(images),
            )
