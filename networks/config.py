"""Configuration of the networks: the tokenizer (encoder, latent, decoder) and the discriminators.

Leaf keys keep the published names. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from common.config import Relation, StrictModel
from common.errors import UserError
from networks.encoders import FAMILIES
from networks.encoders.recognition import PatchSizes, resolve_family, resolve_patch_sizes

EQUIVARIANCE_SCALES = (0.25, 0.5, 0.75)  # factors below 1 that the equivariance regularisation draws from
LOCAL_BATCH = 8  # most images that a discriminator's local batch norm normalises together


def local_groups(batch: int) -> int | None:
    """Into how many equal groups of at most `LOCAL_BATCH` a batch is cut; None where it cannot be."""
    groups = -(-batch // LOCAL_BATCH)
    return groups if batch % groups == 0 else None


def whole_patches(patch: int, scale_factor: float) -> int:
    """Sides of images must be multiples of this many pixels to be whole patches after a resize by `scale_factor`."""
    return (Fraction(patch) / Fraction(scale_factor).limit_denominator(1000)).numerator


class EncoderConfig(StrictModel):
    """The frozen vision foundation model."""

    vfm_name: str = Field(description="Folder or hub id of the model, or its name in timm.")
    family: str | None = Field(None, description="Encoder family; null: told from the model's config or name.")
    revision: str | None = Field(None, description="Hub revision (commit, tag); null: the newest.")
    scale_factor: PositiveFloat = Field(description="Images are resized by this before the encoder.")
    patch_from_layers: list[int] = Field(
        min_length=1,
        description="Which hidden states are fused: 0 embeddings, k block k, -1 the last, normalised.",
    )
    patch_in_dimensions: list[PositiveInt] = Field(min_length=1, description="Channels of each of these layers.")

    def resolved_family(self) -> str:
        """The registry name of the family. Raises UserError if it cannot be told."""
        return resolve_family(self.vfm_name, self.family, self.revision)

    def _patch_sizes(self) -> PatchSizes:
        return resolve_patch_sizes(self.vfm_name, self.resolved_family(), self.revision)

    def patch_sizes(self) -> list[int]:
        """Side in pixels behind one token, of each layer."""
        sizes = self._patch_sizes()
        return [sizes.last if layer == -1 else sizes.patch for layer in self.patch_from_layers]

    def pixel_multiple(self) -> int:
        """The side of what the encoder sees must be a multiple of this."""
        return self._patch_sizes().last

    def token_sides(self, image_side: int) -> list[int]:
        """Side of the token grid of a square image, of each layer."""
        return [int(image_side * self.scale_factor // patch) for patch in self.patch_sizes()]

    def interpolation(self) -> str:
        """How the losses resize target images for this family."""
        return FAMILIES[self.resolved_family()].interpolation


class LatentConfig(StrictModel):
    """From the encoder's layers to the latent: projections, fusion and the bottleneck."""

    compression_mode: Literal["continuous", "discrete"] = Field("continuous", description="KL posterior or codebooks.")
    how_to_compress: Literal["attnproj", "conv"] = Field(
        "attnproj", description="Projections: attention or 1x1 convolution."
    )
    patch_out_dimensions: list[PositiveInt] = Field(
        min_length=1, description="Channels of each layer after its projection."
    )
    attnproj_quant_layers: PositiveInt = Field(1, description="Blocks in every attention projection.")
    resolution_compression_factor: PositiveInt = Field(16, description="Image side over latent side.")
    z_dimension: PositiveInt = Field(32, description="Latent channels (continuous).")
    vocab_width: PositiveInt = Field(64, description="Latent channels (discrete), over all codebooks.")
    vocab_size: PositiveInt = Field(32768, description="Codes (discrete), over all codebooks.")
    num_codebooks: PositiveInt = Field(8, description="Codebooks (discrete).")

    def channels(self) -> int:
        """Channels of the latent."""
        return self.z_dimension if self.compression_mode == "continuous" else self.vocab_width

    def head_channels(self) -> int:
        """Channels before the bottleneck: mean and log-variance of the latent, or what is quantised."""
        return 2 * self.z_dimension if self.compression_mode == "continuous" else self.vocab_width


class DecoderConfig(StrictModel):
    """From the latent back to pixels: expansion, mapping network and progressive synthesis."""

    conditional: bool = Field(False, description="Label-conditional decoder.")
    label_type: Literal["cls2text", "cls2id", "text"] = Field("cls2text", description="Kind of label, if conditional.")
    label_dim: NonNegativeInt = Field(1000, description="Number of classes, if conditional on class ids.")
    how_to_decompress: Literal["attnproj", "conv"] = Field(
        "attnproj", description="Expansion: attention or 1x1 convolution."
    )
    decompress_factor: PositiveInt = Field(16, description="Expansion output channels over latent channels.")
    attnproj_post_quant_layers: PositiveInt = Field(1, description="Blocks in the expansion.")
    z_pooled_resolution: PositiveInt = Field(
        1, description="Side to which the latent is pooled for the mapping network."
    )
    z_dim_for_mapping_mlp_output: PositiveInt = Field(128, description="Width of the style vector w.")
    num_blocks: PositiveInt = Field(6, description="Synthesis blocks; the last one runs at full resolution.")
    channel_base: PositiveInt = Field(32768, description="Channels at 256 times the relative resolution.")
    channel_max: PositiveInt = Field(512, description="Most channels of a block.")
    num_res_blocks: PositiveInt = Field(3, description="Residual groups per block.")
    add_additional_convnext: bool = Field(True, description="3 layers instead of 2 per group in blocks 0 to 3.")
    concat_z_block_indices: list[NonNegativeInt] = Field(
        min_length=1, description="Blocks that the latent is concatenated to; block 0 has no other input."
    )
    concat_z_mapped_dims: list[NonNegativeInt] = Field(
        [], description="Width of the latent branch, indexed by block; empty: the branch keeps its natural width."
    )
    how_to_process_concat_z: Literal["unshuffle", "pooling"] = Field(
        "unshuffle", description="How a branch reaches a side below the latent's."
    )
    activation_for_concat_z: Literal["lrelu", "silu", "gelu"] = Field("gelu", description="Activation in the branches.")
    attn_block_indices: list[NonNegativeInt] = Field([], description="Blocks with attention.")
    attn_depths: list[PositiveInt] = Field([], description="Attention layers of each of these blocks.")
    attn_heads: PositiveInt = Field(8, description="Attention heads.")
    attn_ff_mult: PositiveInt = Field(4, description="Width of the attention's feed-forward layer over its input.")
    use_self_attn: bool = Field(True, description="Self-attention in the attention blocks.")
    use_cross_attn: bool = Field(False, description="Cross-attention to text tokens in the attention blocks.")
    use_convnext: bool = Field(True, description="Modulated ConvNeXt layers; false: StyleGAN-T-like convolutions.")
    use_gaussian_blur: bool = Field(True, description="Fixed blur after every upsampler.")
    use_multiscale_output: bool = Field(True, description="An RGB image per block from an upsampled feature sum.")
    legacy: bool | None = Field(
        None,
        description="Fixed-noise injection of the released weights; null: what the checkpoint has, else off.",
    )
    num_fp16_res: NonNegativeInt = Field(3, description="Highest-resolution blocks in fp16 when precision is fp16.")
    conv_clamp: PositiveFloat | None = Field(256, description="Clamp of activations (StyleGAN-T-like path only).")

    @property
    def reads_texts(self) -> bool:
        """Whether the decoder is conditional on texts."""
        return self.conditional and self.label_type != "cls2id"

    @property
    def reads_classes(self) -> bool:
        """Whether the decoder is conditional on class indices."""
        return self.conditional and self.label_type == "cls2id"

    def layers_per_group(self, block: int) -> int:
        """Style-modulated layers in each residual group of a block."""
        return 3 if self.use_convnext and self.add_additional_convnext and block <= 3 else 2

    def block_resolutions(self, img_resolution: int) -> list[int]:
        """Output side of each synthesis block, smallest first."""
        return [img_resolution >> (self.num_blocks - 1 - k) for k in range(self.num_blocks)]

    def block_channels(self, img_resolution: int) -> list[int]:
        """C_k = min(channel_base / (256 R_k / S), channel_max) of each block."""
        relative = [int(r / (img_resolution / 256)) for r in self.block_resolutions(img_resolution)]
        return [min(self.channel_base // max(r, 1), self.channel_max) for r in relative]

    def latent_multiple(self, img_resolution: int, latent_side: int) -> int:
        """Both sides of a latent must be multiples of this: the largest factor by which a branch shrinks it."""
        sides = self.block_resolutions(img_resolution)
        return (
            max((latent_side // (sides[k] // 2) for k in self.concat_z_block_indices if sides[k] >= 2), default=1) or 1
        )


class TokenizerConfig(StrictModel):
    """Everything that decides the shape of a VFM-VAE tokenizer.

    Attributes:
        MODEL_TYPE: its name in `networks.TOKENIZERS`.
    """

    MODEL_TYPE: ClassVar[str] = "vfm_vae"

    img_resolution: PositiveInt = Field(description="Side of the images that the model is built for.")
    encoder: EncoderConfig
    latent: LatentConfig
    decoder: DecoderConfig
    alignment_head: bool = Field(False, description="Carry the projection to VFM features that the VF loss needs.")

    @property
    def conditional(self) -> bool:
        """Whether the decoder depends on labels."""
        return self.decoder.conditional

    @property
    def reads_texts(self) -> bool:
        """Whether it depends on texts."""
        return self.decoder.reads_texts

    def latent_side(self) -> int:
        """Side of the latent grid at the resolution that the model is built for."""
        return self.img_resolution // self.latent.resolution_compression_factor

    def image_multiple(self) -> int:
        """Both sides of an image, in pixels, must be multiples of this.

        The least common multiple of what the decoder's branches need, so many latent positions, and of what the
        encoder needs, whole patches after its resizing.
        """
        branches = self.decoder.latent_multiple(self.img_resolution, self.latent_side())
        patches = whole_patches(self.encoder.pixel_multiple(), self.encoder.scale_factor)
        return math.lcm(self.latent.resolution_compression_factor * branches, patches)


class ModelConfig(TokenizerConfig):
    """What the `config.json` of a model says: its shape, and how diffusion models are to scale its latent.

    Reads like the configuration of a diffusers autoencoder.
    """

    scaling_factor: PositiveFloat = Field(
        1.0,
        description="Diffusion models work on z * scaling_factor: 1 over the latent's standard deviation, if known.",
    )
    latents_mean: list[float] | None = Field(None, description="Mean of each latent channel, if known.")
    latents_std: list[PositiveFloat] | None = Field(None, description="Its standard deviation, if known.")

    @property
    def in_channels(self) -> int:
        """Channels of the images that go in."""
        return 3

    @property
    def out_channels(self) -> int:
        """Channels of the images that come out."""
        return 3

    @property
    def latent_channels(self) -> int:
        """Channels of the latent."""
        return self.latent.channels()

    @property
    def sample_size(self) -> int:
        """Side of the images that the model is built for."""
        return self.img_resolution

    @property
    def block_out_channels(self) -> list[int]:
        """Channels of the decoder at the image's side and at each halving down to the latent's.

        Pipelines tell the factor between the two sides from the length of this list.
        """
        halvings = self.latent.resolution_compression_factor.bit_length() - 1
        channels = self.decoder.block_channels(self.img_resolution)[::-1]
        return [channels[min(k, len(channels) - 1)] for k in range(halvings + 1)]


class DiscriminatorConfig(StrictModel):
    """The discriminators."""

    use_stylegan_t_discriminator: bool = Field(False, description="Projected discriminator on a frozen DINO.")
    projected_kind: Literal["stylegan_t", "vfmtok"] = Field(
        "stylegan_t", description="Whose projected discriminator: how it resizes, normalises and orders its heads."
    )
    use_patchgan_discriminator: bool = Field(False, description="Three-scale PatchGAN.")
    use_stylegan2_discriminator: bool = Field(
        False, description="Residual discriminator with one logit per image, as in StyleGAN2 (VFMTok)."
    )
    get_interm_feat: bool = Field(False, description="PatchGAN returns its intermediate features.")
    backbone: Literal["dino_vits16", "random_tiny"] = Field(
        "dino_vits16",
        description="Frozen features of the projected discriminator; random_tiny: a small random ViT, for tests.",
    )
    dino_path: str | None = Field(
        None, description="Local DINO ViT-S/16 weights; null: looked for in the hub caches, never downloaded."
    )
    diffaug: bool = Field(True, description="Differentiable augmentation of the projected discriminator's input.")
    diffaug_policy: list[Literal["color", "translation", "cutout", "resize"]] = Field(
        ["color", "translation", "cutout"], min_length=1, description="Its operations, in this order."
    )
    p_crop: float = Field(0.5, ge=0, le=1, description="Probability of a crop instead of a resize to the backbone.")
    blur_init_sigma: NonNegativeFloat = Field(
        2.0, description="Blur of what all discriminators see at the start, in pixels."
    )
    blur_fade_kimg: NonNegativeFloat = Field(0.0, description="The blur fades to nothing by here; 0: no blur.")

    @property
    def enabled(self) -> bool:
        """Whether there is any discriminator."""
        return self.use_stylegan_t_discriminator or self.use_patchgan_discriminator or self.use_stylegan2_discriminator


# --- relations between keys ----------------------------------------------------------------------------------
# `c` is any object with the sections `encoder`, `latent`, `decoder`; `resolution_key` says where the image side is.


def _lists_of_equal_length(c) -> str | None:
    counts = (len(c.encoder.patch_from_layers), len(c.encoder.patch_in_dimensions), len(c.latent.patch_out_dimensions))
    if len(set(counts)) == 1:
        return None
    return (
        f"{counts[0]} layers {c.encoder.patch_from_layers}, but encoder.patch_in_dimensions has {counts[1]} and "
        f"latent.patch_out_dimensions has {counts[2]} values; give one value per layer in all three lists."
    )


def _projection_widths(c) -> str | None:
    for n_in, n_out in zip(c.encoder.patch_in_dimensions, c.latent.patch_out_dimensions):
        if n_in < n_out:
            return f"a layer of {n_in} channels cannot be projected to {n_out}; the projection must not be wider."
        if c.latent.how_to_compress == "attnproj" and n_in % n_out:
            return f"attention projects {n_in} channels only to a divisor of {n_in}, found {n_out}."
    return None


def _codebooks_share_evenly(leaf: str) -> Relation:
    def check(c) -> str | None:
        total, count = getattr(c.latent, leaf), c.latent.num_codebooks
        if c.latent.compression_mode == "continuous" or total % count == 0:
            return None
        return f"found {total}, expected a multiple of latent.num_codebooks {count}, for all codebooks are alike."

    return Relation((f"latent.{leaf}", "latent.num_codebooks", "latent.compression_mode"), check)


def _known_family(c) -> str | None:
    try:
        c.encoder.resolved_family()
    except UserError as error:
        return str(error)
    return None


def _attention_depths(c) -> str | None:
    blocks, depths = c.decoder.attn_block_indices, c.decoder.attn_depths
    if len(blocks) != len(depths):
        return f"{len(depths)} depths {depths} for {len(blocks)} attention blocks {blocks}; give one depth per block."
    return None


def _cross_attention_reads_texts(c) -> str | None:
    if c.decoder.use_cross_attn and not c.decoder.reads_texts:
        return "true, but it looks at tokens of texts; set decoder.conditional: true and label_type: cls2text or text."
    return None


def _text_model_comes_along(c) -> str | None:
    if not c.decoder.reads_texts or _known_family(c):
        return None
    family = c.encoder.resolved_family()
    if FAMILIES[family].has_text:
        return None
    with_text = ", ".join(name for name, facts in FAMILIES.items() if facts.has_text)
    return (
        f"true with label_type {c.decoder.label_type}, but an encoder of the family {family} has no text model; "
        f"use one of {with_text}, or label_type cls2id."
    )


def _classes_are_counted(c) -> str | None:
    if c.decoder.reads_classes and c.decoder.label_dim == 0:
        return "found 0, expected the number of classes: the decoder is conditional on class indices."
    return None


def _block_indices(key: str):
    def check(c) -> str | None:
        indices = getattr(c.decoder, key)
        wrong = [i for i in indices if i >= c.decoder.num_blocks]
        if wrong:
            return f"block {wrong[0]} does not exist; decoder.num_blocks is {c.decoder.num_blocks}, counted from 0."
        if len(set(indices)) != len(indices):
            return f"found {indices}, expected each block at most once."
        return None

    return check


def _first_block_takes_latent(c) -> str | None:
    if 0 not in c.decoder.concat_z_block_indices:
        return f"found {c.decoder.concat_z_block_indices}, expected a list that contains 0: block 0 has no other input."
    return None


def _mapped_dims_cover_blocks(c) -> str | None:
    dims = c.decoder.concat_z_mapped_dims
    needed = max(c.decoder.concat_z_block_indices, default=-1) + 1
    if dims and len(dims) < needed:
        return (
            f"{len(dims)} widths for blocks up to {needed - 1}; the list is indexed by block, so give {needed} values."
        )
    used = [dims[i] for i in c.decoder.concat_z_block_indices] if dims else []
    wrong = [width for width in used if width == 0 or (width > 32 and width % 32)]
    if wrong:
        return f"found a width of {wrong[0]}, expected 1 to 32 or a multiple of 32 (32 normalisation groups)."
    return None


def _block_channels_divide(c, side: int) -> str | None:
    channels = c.decoder.block_channels(side)
    for k, width in enumerate(channels):
        groups = min(32, width // 4) if c.decoder.use_convnext else 32
        if groups == 0 or width % groups:
            return f"gives block {k} {width} channels, expected a multiple of {max(groups, 4)} for its group norm."
        if k in c.decoder.attn_block_indices and width % c.decoder.attn_heads:
            return (
                f"gives block {k} {width} channels, expected a multiple of its {c.decoder.attn_heads} attention heads."
            )
    return None


def _resolution_divides(c, side: int) -> str | None:
    factor, blocks = c.latent.resolution_compression_factor, c.decoder.num_blocks
    if side % factor:
        return f"{side} is not divisible by latent.resolution_compression_factor {factor}."
    if side % (1 << (blocks - 1)):
        return f"{side} is not divisible by {1 << (blocks - 1)}, as decoder.num_blocks {blocks} needs."
    latent = side // factor
    first = side >> (blocks - 1)
    if first < 2:
        return f"{side} leaves block 0 a side of {first}; use at most {side.bit_length() - 1} blocks."
    for resolution in c.decoder.block_resolutions(side):
        if max(resolution, 2 * latent) % min(resolution, 2 * latent):
            return f"{side} gives blocks of {resolution} pixels, which no whole factor ties to the latent's {latent}."
    return None


def _encoder_grid(c, side: int) -> str | None:
    multiple, scale = c.encoder.pixel_multiple(), c.encoder.scale_factor
    scaled = side * scale
    if scaled % multiple:
        return (
            f"{side} x encoder.scale_factor {scale:g} = {scaled:g} pixels is not divisible by the patch size "
            f"{multiple}."
        )
    latent = side // c.latent.resolution_compression_factor
    patches = dict(zip(c.encoder.patch_from_layers, c.encoder.patch_sizes()))
    for layer, patch in patches.items():
        grid = int(scaled // patch)
        if latent == 0 or grid < latent or grid % latent:
            of_layer = "" if len(set(patches.values())) == 1 else f" of layer {layer}"
            return (
                f"the encoder's grid{of_layer} at {side} pixels is {grid} x {grid} tokens (scale_factor {scale:g}, "
                f"patch {patch}), expected a multiple of the latent's {latent} x {latent}."
            )
    return None


def fused_channels(widths: Sequence[int], unshuffle: Sequence[int]) -> int:
    """Channels of all projected layers together once space-to-depth has brought each to the latent's grid."""
    return sum(width * factor**2 for width, factor in zip(widths, unshuffle, strict=True))


def _fused_width_fits_head(c, side: int) -> str | None:
    if c.latent.how_to_compress != "attnproj":
        return None
    latent = side // c.latent.resolution_compression_factor
    unshuffle = [tokens // latent for tokens in c.encoder.token_sides(side)]
    fused = fused_channels(c.latent.patch_out_dimensions, unshuffle)
    head = c.latent.head_channels()
    if max(fused, head) % min(fused, head):
        widths = zip(c.latent.patch_out_dimensions, unshuffle)
        summands = " + ".join(f"{width} x {factor**2}" for width, factor in widths)
        return (
            f"the fused layers have {fused} channels ({summands}) and the head {head}; attention projects only where "
            "one divides the other."
        )
    return None


def geometry_problem(c, side: int) -> str | None:
    """What is wrong with the encoder's family or the grids at an image side, or None."""
    return _known_family(c) or _resolution_divides(c, side) or _encoder_grid(c, side)


def _vfmtok_judges_images_as_they_are(c) -> str | None:
    d = c.discriminator
    if d.use_stylegan_t_discriminator and d.projected_kind == "vfmtok" and d.diffaug:
        return "true, but discriminator.projected_kind vfmtok sees images without augmentation; set it false."
    return None


DISCRIMINATOR_RELATIONS = (
    Relation(
        ("discriminator.diffaug", "discriminator.projected_kind", "discriminator.use_stylegan_t_discriminator"),
        _vfmtok_judges_images_as_they_are,
    ),
)


def tokenizer_relations(resolution_key: str, side) -> list[Relation]:
    """The rules between the keys of a tokenizer.

    Args:
        resolution_key: dotted path of the image side, for messages.
        side: function from the whole configuration to that side in pixels.
    """
    geometry = (resolution_key, "latent.resolution_compression_factor", "decoder.num_blocks")
    grid = (
        resolution_key,
        "encoder.scale_factor",
        "encoder.vfm_name",
        "encoder.family",
        "encoder.revision",
        "encoder.patch_from_layers",
        "latent.resolution_compression_factor",
    )

    def grid_problem(c) -> str | None:
        if _known_family(c) or side(c) % c.latent.resolution_compression_factor:
            return None  # reported by their own relations
        return _encoder_grid(c, side(c))

    return [
        Relation(("encoder.vfm_name", "encoder.family", "encoder.revision"), _known_family),
        Relation(
            ("encoder.patch_from_layers", "encoder.patch_in_dimensions", "latent.patch_out_dimensions"),
            _lists_of_equal_length,
        ),
        Relation(
            ("latent.patch_out_dimensions", "encoder.patch_in_dimensions", "latent.how_to_compress"),
            _projection_widths,
        ),
        _codebooks_share_evenly("vocab_size"),
        _codebooks_share_evenly("vocab_width"),
        Relation(("decoder.attn_depths", "decoder.attn_block_indices"), _attention_depths),
        Relation(("decoder.use_cross_attn", "decoder.conditional", "decoder.label_type"), _cross_attention_reads_texts),
        Relation(
            ("decoder.conditional", "decoder.label_type", "encoder.vfm_name", "encoder.family"), _text_model_comes_along
        ),
        Relation(("decoder.label_dim", "decoder.conditional", "decoder.label_type"), _classes_are_counted),
        Relation(("decoder.attn_block_indices", "decoder.num_blocks"), _block_indices("attn_block_indices")),
        Relation(("decoder.concat_z_block_indices", "decoder.num_blocks"), _block_indices("concat_z_block_indices")),
        Relation(("decoder.concat_z_block_indices",), _first_block_takes_latent),
        Relation(("decoder.concat_z_mapped_dims", "decoder.concat_z_block_indices"), _mapped_dims_cover_blocks),
        Relation(geometry, lambda c: _resolution_divides(c, side(c))),
        Relation(grid, grid_problem),
        Relation(
            (
                "latent.patch_out_dimensions",
                "encoder.patch_in_dimensions",
                "latent.z_dimension",
                "latent.vocab_width",
                "latent.compression_mode",
                "latent.how_to_compress",
                *grid,
            ),
            lambda c: (
                None
                if _lists_of_equal_length(c) or geometry_problem(c, side(c))
                else _fused_width_fits_head(c, side(c))
            ),
        ),
        Relation(
            ("decoder.channel_base", "decoder.channel_max", "decoder.attn_heads", *geometry),
            lambda c: None if _resolution_divides(c, side(c)) else _block_channels_divide(c, side(c)),
        ),
    ]


TOKENIZER_RELATIONS = tokenizer_relations("img_resolution", lambda c: c.img_resolution)


def _statistics_cover_channels(c) -> str | None:
    lists = {"latents_mean": c.latents_mean, "latents_std": c.latents_std}
    if (c.latents_mean is None) != (c.latents_std is None):
        return "latents_mean and latents_std belong together; give both or neither."
    for name, values in lists.items():
        if values is not None and len(values) != c.latent.channels():
            return f"{name} has {len(values)} values for {c.latent.channels()} latent channels; give one per channel."
    return None


MODEL_RELATIONS = [
    *TOKENIZER_RELATIONS,
    Relation(
        ("latents_mean", "latents_std", "latent.compression_mode", "latent.z_dimension", "latent.vocab_width"),
        _statistics_cover_channels,
    ),
]
