"""Records that flow between the networks.

    images -> encoder features -> moments -> posterior -> latent z -> decoder -> images of all scales
                                  chunks  -> codes     (discrete mode)

Shapes: B images, side S; h x w latent grid; C latent channels; D_i channels of encoder layer i.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from networks.latent import DiagonalGaussian
from networks.quantizer import Quantized
from networks.tokens import tokens_to_map


@dataclass(frozen=True)
class Features:
    """Token maps of the requested encoder layers, in the order in which they were requested.

    Attributes:
        levels: one [B, h_i * w_i, D_i] tensor per layer, float32, row-major tokens, no class or register tokens.
        grids: the (h_i, w_i) of each; kept beside the tokens, so that no square root is ever taken.
    """

    levels: list[Tensor]
    grids: list[tuple[int, int]]

    def as_map(self, position: int) -> Tensor:
        """The level at this position of the lists as [B, D_i, h_i, w_i]."""
        return tokens_to_map(self.levels[position], self.grids[position])


@dataclass(frozen=True)
class Latent:
    """What the encoder side makes of a batch of images; either a posterior or codes stand behind it.

    Attributes:
        z: the latent [B, C, h, w], before any equivariance transform: a sample of the posterior, or the chosen codes.
        posterior: the distribution that z was drawn from; None in discrete mode.
        quantized: the codes that z is made of; None in continuous mode.
        features: the frozen features it was made from.
        projected: z in the feature space of the encoder's last layer, [B, D, h, w]; None without an alignment head.
    """

    z: Tensor
    posterior: DiagonalGaussian | None
    quantized: Quantized | None
    features: Features
    projected: Tensor | None


@dataclass(frozen=True)
class Conditioning:
    """What a conditional decoder depends on besides the latent.

    Attributes:
        label: [B, c]: the class as a one-hot vector (cls2id), or the global embedding of a text (text, cls2text).
        tokens: embeddings of the text's tokens, [B, L, D], for cross-attention.
        mask: [B, L], True where there is a token and not padding; None: everywhere.
    """

    label: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None

    def __getitem__(self, rows: slice) -> Conditioning:
        """That of some images of the batch."""
        return Conditioning(*(part if part is None else part[rows] for part in (self.label, self.tokens, self.mask)))


@dataclass(frozen=True)
class Decoded:
    """What the decoder makes of a latent.

    Attributes:
        reconstruction: [B, 3, S, S], nominally in [-1, 1], not clamped.
        pyramid: images of the intermediate resolutions by their nominal side (that of the block), same range.
    """

    reconstruction: Tensor
    pyramid: dict[int, Tensor]


@dataclass(frozen=True)
class TokenizerOutput:
    """A whole pass through a tokenizer.

    Attributes:
        latent: the encoder side's result.
        decoder_input: the z that the decoder saw (before the equivariance transform). When the pass was cut
            at the latent it is a leaf, whose gradient is the decoder's share.
        decoded: the decoder side's result.
    """

    latent: Latent
    decoder_input: Tensor
    decoded: Decoded


@dataclass(frozen=True)
class Verdict:
    """What the discriminators say of a batch of images. Higher logits mean "real".

    Attributes:
        projected: logits of the projected discriminator, [B, heads * patches]; None without it.
        patches: the PatchGAN's maps at full, half and quarter scale: of each the outputs of its layers, [B, C, h, w],
            the logits [B, 1, h, w] last (and alone where intermediate features are not kept); None without it.
        whole: one logit per image of the StyleGAN2-like discriminator, [B, 1]; None without it.
    """

    projected: Tensor | None = None
    patches: list[list[Tensor]] | None = None
    whole: Tensor | None = None

    def logits(self) -> list[Tensor]:
        """All logits: of the projected discriminator, of each scale of the PatchGAN, of the StyleGAN2-like one."""
        projected, whole = ([] if logits is None else [logits] for logits in (self.projected, self.whole))
        return projected + [layers[-1] for layers in self.patches or []] + whole
