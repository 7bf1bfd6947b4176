"""The reference's YAML layout (flat, `G_kwargs`, `class_name`, ...) in this project's sections.

Everything that is known about the foreign layout stands in the tables of this file. A translated configuration
says everything explicitly: where the reference has a default, its default is written down, so that a file keeps
its meaning whatever the defaults of this project are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.config import Problem, Source
from common.registry import closest

ABSENT: Any = object()


@dataclass(frozen=True)
class Key:
    """A key of the reference that this project has too.

    Args:
        own: dotted path here.
        default: the reference's default; ABSENT where it has none, or where `_derive` finds it.
    """

    own: str
    default: Any = ABSENT


@dataclass(frozen=True)
class Fixed:
    """A key of the reference that has only some of its values here; the others are refused by name.

    Args:
        accepted: the values that may be given.
        reason: why no other is, and what to do.
    """

    accepted: tuple[Any, ...]
    reason: str


@dataclass(frozen=True)
class Follows:
    """A key that the reference derives from another one; given explicitly, it must agree.

    Args:
        other: the reference key that decides.
        derive: from its value to the one that is expected here.
    """

    other: str
    derive: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Ignored:
    """A key that is accepted and has no meaning here.

    Args:
        reason: note for the user.
    """

    reason: str


def _positive(value: Any) -> Any:
    return value > 0 if isinstance(value, (int, float)) else ABSENT


# --- the tables ----------------------------------------------------------------------------------------------

GROUPS = (
    "training_set_kwargs",
    "training_data_loader_kwargs",
    "G_kwargs",
    "G_kwargs.synthesis_kwargs",
    "D_kwargs",
    "loss_kwargs",
    "G_opt_kwargs",
    "D_opt_kwargs",
)
REQUIRED_GROUPS = ("training_set_kwargs", "G_kwargs")

_WDS = "training.data_wds.WdsWrapper"
_FOLDER = "training.data_zip.ImageFolderDataset"
_POSITION = "every checkpoint holds the position in the data, so resuming needs no lists of finished shards; remove it."
_NO_VALIDATION = "reconstruction of a validation set during training is not built yet; remove it."
_CONVNEXT_ONLY = "other values belong to the decoder without ConvNeXt layers, which is not built yet."

KEYS: dict[str, Key | Fixed | Follows | Ignored] = {
    # run and logging
    "run_dir": Key("run.run_dir", "."),
    "random_seed": Key("run.random_seed", 42),
    "wandb_project_name": Key("logging.wandb_project_name", None),
    "wandb_run_name": Key("logging.wandb_run_name", None),
    "image_snapshot_ticks": Key("logging.image_snapshot_ticks", 50),
    "network_snapshot_ticks": Key("checkpoint.network_snapshot_ticks", 50),
    "metrics": Fixed(
        ([], None),
        "these metrics cannot evaluate a tokenizer; use `[]` and tools/reconstruct/evaluate.py on a checkpoint.",
    ),
    # schedule
    "batch_size": Key("training.batch_size", 4),
    "accumulate_gradients": Key("training.accumulate_gradients", 1),
    "total_kimg": Key("training.total_kimg", 25000),
    "kimg_per_tick": Key("training.kimg_per_tick", 4),
    "ema_kimg": Key("training.ema_kimg", 10),
    "ema_rampup": Key("training.ema_rampup", 0.05),
    "cudnn_benchmark": Key("training.cudnn_benchmark", True),
    "resume_path": Key("training.init_from", None),
    "resume_kimg": Key("training.init_kimg", 0),
    "resume_discriminator": Key("training.init_discriminator", True),
    "one_epoch": Key("data.one_epoch"),
    # data
    "training_set_kwargs.class_name": Fixed((_WDS, _FOLDER), "there is no other kind of data set."),
    "training_set_kwargs.path": Key("data.path"),
    "training_set_kwargs.resolution": Key("data.resolution"),
    "training_set_kwargs.conditional": Key("decoder.conditional", False),
    "training_set_kwargs.label_type": Key("data.label_type"),
    "training_set_kwargs.filter_keys_path": Key("data.filter_keys_path", None),
    "training_set_kwargs.cls_to_text_path": Key("data.cls_to_text_path", None),
    "training_set_kwargs.data_augmentation": Key("data.data_augmentation", False),
    "training_set_kwargs.one_epoch": Key("data.one_epoch", False),
    "training_set_kwargs.max_size": Key("data.max_size", None),
    "training_set_kwargs.xflip": Key("data.xflip", False),
    "training_set_kwargs.use_labels": Fixed((True, False), "give true or false."),
    "training_set_kwargs.random_seed": Ignored("the subset of max_size images is drawn from run.random_seed."),
    "training_set_kwargs.processed_tar_read_dir": Fixed((None,), _POSITION),
    "training_set_kwargs.processed_tar_write_dir": Fixed((None,), _POSITION),
    "training_data_loader_kwargs.num_workers": Key("data.workers"),
    "training_data_loader_kwargs.prefetch_factor": Key("data.prefetch_batches"),
    "training_data_loader_kwargs.pin_memory": Ignored("batches are always pinned when a GPU is used."),
    "training_data_loader_kwargs.persistent_workers": Ignored("workers always live as long as the run."),
    "validation_set_kwargs": Fixed(({}, None), _NO_VALIDATION),
    "validation_data_loader_kwargs": Fixed(({}, None), _NO_VALIDATION),
    # encoder
    "G_kwargs.class_name": Fixed(("networks.generator.Generator",), "there is no other generator."),
    "G_kwargs.vfm_name": Key("encoder.vfm_name"),
    "G_kwargs.scale_factor": Key("encoder.scale_factor"),
    "G_kwargs.patch_from_layers": Key("encoder.patch_from_layers"),
    "G_kwargs.patch_in_dimensions": Key("encoder.patch_in_dimensions"),
    # latent
    "G_kwargs.patch_out_dimensions": Key("latent.patch_out_dimensions"),
    "G_kwargs.compression_mode": Key("latent.compression_mode"),
    "G_kwargs.how_to_compress": Key("latent.how_to_compress"),
    "G_kwargs.attnproj_quant_layers": Key("latent.attnproj_quant_layers", 1),
    "G_kwargs.resolution_compression_factor": Key("latent.resolution_compression_factor", 16),
    "G_kwargs.z_dimension": Key("latent.z_dimension", 32),
    "G_kwargs.vocab_width": Key("latent.vocab_width", 64),
    "G_kwargs.vocab_size": Key("latent.vocab_size", 32768),
    "G_kwargs.vocab_beta": Key("latent.vocab_beta", 0.25),
    "G_kwargs.use_entropy_loss": Key("latent.use_entropy_loss", False),
    "G_kwargs.entropy_temp": Key("latent.entropy_temp", 0.01),
    "G_kwargs.num_codebooks": Key("latent.num_codebooks", 8),
    # decoder
    "G_kwargs.conditional": Key("decoder.conditional"),
    "G_kwargs.label_type": Key("decoder.label_type"),
    "G_kwargs.label_dim": Key("decoder.label_dim", 1000),
    "G_kwargs.how_to_decompress": Key("decoder.how_to_decompress"),
    "G_kwargs.decompress_factor": Key("decoder.decompress_factor"),
    "G_kwargs.attnproj_post_quant_layers": Key("decoder.attnproj_post_quant_layers", 1),
    "G_kwargs.z_pooled_resolution": Key("decoder.z_pooled_resolution", 1),
    "G_kwargs.z_dim_for_mapping_mlp_output": Key("decoder.z_dim_for_mapping_mlp_output", 128),
    "G_kwargs.num_blocks": Key("decoder.num_blocks", 6),
    "G_kwargs.concat_z_block_indices": Key("decoder.concat_z_block_indices", []),
    "G_kwargs.concat_z_mapped_dims": Key("decoder.concat_z_mapped_dims", []),
    "G_kwargs.how_to_process_concat_z": Key("decoder.how_to_process_concat_z", "unshuffle"),
    "G_kwargs.activation_for_concat_z": Key("decoder.activation_for_concat_z", "gelu"),
    "G_kwargs.attn_block_indices": Key("decoder.attn_block_indices", []),
    "G_kwargs.attn_depths": Key("decoder.attn_depths", []),
    "G_kwargs.use_self_attn": Key("decoder.use_self_attn", True),
    "G_kwargs.use_cross_attn": Key("decoder.use_cross_attn", False),
    "G_kwargs.use_convnext": Key("decoder.use_convnext", True),
    "G_kwargs.use_gaussian_blur": Key("decoder.use_gaussian_blur", True),
    "G_kwargs.add_additional_convnext": Key("decoder.add_additional_convnext", True),
    "G_kwargs.use_multiscale_output": Key("decoder.use_multiscale_output"),
    "G_kwargs.num_fp16_res": Key("decoder.num_fp16_res", 3),
    "G_kwargs.conv_clamp": Key("decoder.conv_clamp", 256),
    "G_kwargs.legacy": Key("decoder.legacy", False),
    "G_kwargs.img_channels": Fixed((3,), "images have 3 channels."),
    "G_kwargs.synthesis_kwargs.channel_base": Key("decoder.channel_base", 32768),
    "G_kwargs.synthesis_kwargs.channel_max": Key("decoder.channel_max", 512),
    "G_kwargs.synthesis_kwargs.num_res_blocks": Key("decoder.num_res_blocks", 3),
    "G_kwargs.synthesis_kwargs.attn_heads": Key("decoder.attn_heads", 8),
    "G_kwargs.synthesis_kwargs.attn_ff_mult": Key("decoder.attn_ff_mult", 4),
    "G_kwargs.synthesis_kwargs.architecture": Fixed(("skip",), "the other architectures are not part of the method."),
    "G_kwargs.synthesis_kwargs.resample_filter": Fixed(([1, 3, 3, 1],), "the blur is fixed to this filter."),
    "G_kwargs.synthesis_kwargs.use_noise": Fixed((True,), _CONVNEXT_ONLY),
    "G_kwargs.synthesis_kwargs.activation": Fixed(("lrelu",), _CONVNEXT_ONLY),
    "G_kwargs.synthesis_kwargs.layer_scale_init": Fixed((1e-5,), _CONVNEXT_ONLY),
    "G_kwargs.synthesis_kwargs.gn_groups": Fixed((32,), _CONVNEXT_ONLY),
    "G_kwargs.synthesis_kwargs.kernel_size": Fixed((3,), _CONVNEXT_ONLY),
    "G_kwargs.synthesis_kwargs.fp16_channels_last": Ignored("set training.channels_last for faster convolutions."),
    "G_kwargs.synthesis_kwargs.fused_modconv_default": Ignored("modulated convolutions have one implementation."),
    # what the generator takes over from other groups
    "G_kwargs.img_resolution": Follows("training_set_kwargs.resolution"),
    "G_kwargs.use_kl_loss": Follows("loss_kwargs.kl_loss_weight", _positive),
    "G_kwargs.use_vf_loss": Follows("loss_kwargs.vf_loss_weight", _positive),
    "G_kwargs.use_adaptive_vf_loss": Follows("loss_kwargs.use_adaptive_vf_loss"),
    "G_kwargs.use_equivariance_regularization": Follows("loss_kwargs.use_equivariance_regularization"),
    # training of the generator
    "G_kwargs.train_mode": Key("training.train_mode", "train_all"),
    "G_kwargs.equivariance_regularization_p_prior": Key("equivariance.equivariance_regularization_p_prior", 0.5),
    "G_kwargs.equivariance_regularization_p_prior_scale": Key(
        "equivariance.equivariance_regularization_p_prior_scale", 0.25
    ),
    "G_opt_kwargs.class_name": Fixed(("torch.optim.Adam",), "there is no other optimiser."),
    "G_opt_kwargs.lr": Key("optimizer.generator.lr", 1e-3),
    "G_opt_kwargs.betas": Key("optimizer.generator.betas", [0.9, 0.999]),
    "G_opt_kwargs.eps": Key("optimizer.generator.eps", 1e-8),
    "G_opt_kwargs.weight_decay": Fixed(
        (0,), "this Adam decays weights apart from the gradient; see optimizer.generator."
    ),
    # discriminators
    "D_kwargs.class_name": Fixed(
        ("networks.discriminator.ProjectedDiscriminator",), "there is no other discriminator."
    ),
    "D_kwargs.vfm_name": Follows("G_kwargs.vfm_name"),
    "D_kwargs.use_stylegan_t_discriminator": Key("discriminator.use_stylegan_t_discriminator", True),
    "D_kwargs.use_patchgan_discriminator": Key("discriminator.use_patchgan_discriminator", False),
    "D_kwargs.get_interm_feat": Key("discriminator.get_interm_feat", False),
    "D_kwargs.diffaug": Key("discriminator.diffaug", True),
    "D_kwargs.p_crop": Key("discriminator.p_crop", 0.5),
    "D_opt_kwargs.class_name": Fixed(("torch.optim.Adam",), "there is no other optimiser."),
    "D_opt_kwargs.lr": Key("optimizer.discriminator.lr", 1e-3),
    "D_opt_kwargs.betas": Key("optimizer.discriminator.betas", [0.9, 0.999]),
    "D_opt_kwargs.eps": Key("optimizer.discriminator.eps", 1e-8),
    "D_opt_kwargs.weight_decay": Fixed(
        (0,), "this Adam decays weights apart from the gradient; see optimizer.discriminator."
    ),
    # losses
    "loss_kwargs.class_name": Fixed(("training.loss.TotalLoss",), "there is no other objective."),
    "loss_kwargs.vfm_name": Follows("G_kwargs.vfm_name"),
    "loss_kwargs.compression_mode": Follows("G_kwargs.compression_mode"),
    "loss_kwargs.resume_kimg": Follows("resume_kimg"),
    "loss_kwargs.total_kimg": Ignored("the objective does not depend on the length of the run."),
    "loss_kwargs.use_equivariance_regularization": Key("equivariance.use_equivariance_regularization"),
    "loss_kwargs.l1_pixel_loss_weight": Key("losses.l1_pixel.weight", 1.0),
    "loss_kwargs.l2_pixel_loss_weight": Key("losses.l2_pixel.weight", 0),
    "loss_kwargs.perceptual_loss_weight": Key("losses.perceptual.weight", 10.0),
    "loss_kwargs.ssim_loss_weight": Key("losses.ssim.weight", 0),
    "loss_kwargs.multiscale_block_indices": Key("losses.multiscale_pixel.weights", []),
    "loss_kwargs.multiscale_pixel_loss_weights": Key("losses.multiscale_pixel.weights", []),
    "loss_kwargs.multiscale_pixel_loss_start_kimg": Key("losses.multiscale_pixel.start_kimg", 0),
    "loss_kwargs.multiscale_pixel_loss_end_kimg": Key("losses.multiscale_pixel.end_kimg", 2000),
    "loss_kwargs.kl_loss_weight": Key("losses.kl.weight", 1e-6),
    "loss_kwargs.vf_loss_weight": Key("losses.vf.weight", 0),
    "loss_kwargs.use_adaptive_vf_loss": Key("losses.vf.use_adaptive_vf_loss", False),
    "G_kwargs.distmat_margin": Key("losses.vf.distmat_margin", 0.0),
    "G_kwargs.cos_margin": Key("losses.vf.cos_margin", 0.0),
    "G_kwargs.distmat_weight": Key("losses.vf.distmat_weight", 1.0),
    "G_kwargs.cos_weight": Key("losses.vf.cos_weight", 1.0),
    "loss_kwargs.stylegan_t_discriminator_loss_weight": Key("losses.stylegan_t.weight", 1.0),
    "loss_kwargs.use_stylegan_t_disc_warmup": Key("losses.stylegan_t.use_disc_warmup", False),
    "loss_kwargs.blur_init_sigma": Key("losses.stylegan_t.blur_init_sigma", 2),
    "loss_kwargs.blur_fade_kimg": Key("losses.stylegan_t.blur_fade_kimg", 0),
    "loss_kwargs.patchgan_discriminator_loss_weight": Key("losses.patchgan.weight", 0),
    "loss_kwargs.patchgan_discriminator_loss_type": Key("losses.patchgan.loss_type", "mse"),
    "loss_kwargs.use_patchgan_disc_warmup": Key("losses.patchgan.use_disc_warmup", False),
    "loss_kwargs.feature_matching_loss_weight": Key("losses.feature_matching.weight", 1.0),
    "loss_kwargs.matching_aware_loss_weight": Key("losses.matching_aware.weight", 0),
    "loss_kwargs.matching_aware_loss_start_kimg": Key("losses.matching_aware.start_kimg", 0),
    "loss_kwargs.clip_loss_weight": Key("losses.clip.weight", 0),
    "loss_kwargs.clip_loss_start_kimg": Key("losses.clip.start_kimg", 0),
    "loss_kwargs.vq_loss_weight": Key("losses.vq.weight", 1.0),
    "loss_kwargs.entropy_loss_weight": Key("losses.entropy.weight", 0),
}

# The name that a problem found in a translated section is also reported under.
REFERENCE_NAMES: dict[str, str] = {}
for _name, _entry in KEYS.items():
    if isinstance(_entry, Key):
        REFERENCE_NAMES.setdefault(_entry.own, _name)


# --- translation ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Translation:
    """A reference file in this project's sections.

    Args:
        source: the translated values.
        notes: what was decided or left out, for the user to read.
        problems: what cannot be translated, under the reference's names.
    """

    source: Source
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def is_reference_layout(values: Mapping[str, Any]) -> bool:
    """Whether a configuration is written in the reference's layout."""
    return any(group in values for group in GROUPS)


def translate(source: Source) -> Translation:
    """Translate a file of the reference's layout; what is wrong in it is collected, not raised."""
    problems: list[Problem] = []
    notes: list[str] = []
    given = _flatten(source.values, problems)
    _check_names_and_fixed_values(given, notes, problems)
    own = {
        entry.own: entry.default for entry in KEYS.values() if isinstance(entry, Key) and entry.default is not ABSENT
    }
    own |= {KEYS[name].own: value for name, value in given.items() if isinstance(KEYS.get(name), Key)}
    _derive(own, given, notes, problems)
    _drop_idle_terms(own, notes)
    values: dict[str, Any] = {}
    for dotted, value in own.items():
        _put(values, dotted, value)
    origins = dict(source.origins)
    for dotted in own:
        name = REFERENCE_NAMES.get(dotted)
        if name in given:
            origins[tuple(dotted.split("."))] = source.origin(tuple(name.split(".")))
    return Translation(Source(source.path, values, origins, names=REFERENCE_NAMES), notes, problems)


def _flatten(values: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """The leaves of the known groups by dotted key."""
    flat: dict[str, Any] = {}

    def walk(mapping: Mapping[str, Any], prefix: str) -> None:
        for key, value in mapping.items():
            name = f"{prefix}{key}"
            if name not in GROUPS:
                flat[name] = value
            elif isinstance(value, Mapping):
                walk(value, f"{name}.")
            elif value is not None or name in REQUIRED_GROUPS:
                problems.append(Problem(name, f"found {value!r}, expected a mapping of keys."))

    walk(values, "")
    problems += [Problem(group, "missing. This group is required.") for group in REQUIRED_GROUPS if group not in values]
    return flat


def _check_names_and_fixed_values(given: dict[str, Any], notes: list[str], problems: list[Problem]) -> None:
    for name, value in given.items():
        entry = KEYS.get(name)
        if entry is None:
            group = name.rpartition(".")[0]
            siblings = [known for known in (*KEYS, *GROUPS) if known.rpartition(".")[0] == group]
            near = closest(name, siblings) or ""
            problems.append(Problem(name, f"unknown key. Closest: {near.rpartition('.')[2]}."))
        elif isinstance(entry, Fixed) and value not in entry.accepted:
            accepted = " or ".join(repr(item) for item in entry.accepted if item is not None) or "null"
            problems.append(Problem(name, f"found {value!r}, expected {accepted}: {entry.reason}"))
        elif isinstance(entry, Ignored):
            notes.append(f"{name} has no effect here: {entry.reason}")
        elif isinstance(entry, Follows):
            other = KEYS[entry.other]
            default = other.default if isinstance(other, Key) else ABSENT
            expected = entry.derive(given.get(entry.other, default))
            if expected is not ABSENT and value != expected:
                problems.append(
                    Problem(name, f"found {value!r}, but {entry.other} makes it {expected!r}; leave this key out.")
                )


def _derive(own: dict[str, Any], given: dict[str, Any], notes: list[str], problems: list[Problem]) -> None:
    """Values that depend on more than one key of the reference."""


def _drop_idle_terms(own: dict[str, Any], notes: list[str]) -> None:
    """Terms without effect."""


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, leaf = dotted.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[leaf] = value
