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
REQUIRED: Any = object()


@dataclass(frozen=True)
class Key:
    """A key of the reference that this project has too.

    Args:
        own: dotted path here.
        default: the reference's default; REQUIRED where it has none but this project does, ABSENT where neither has.
    """

    own: str
    default: Any = ABSENT


@dataclass(frozen=True)
class Joint:
    """A key of the reference that is translated together with others, by a function below.

    Args:
        own: dotted path of what they become together.
    """

    own: str


@dataclass(frozen=True)
class Fallback:
    """A key that counts where another one is not given.

    Args:
        other: that other reference key.
    """

    other: str


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
    "validation_set_kwargs",
    "validation_data_loader_kwargs",
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
_PLAIN = "the validation takes every image as it is; remove it."
_LABELS = "labels of the validation follow those of the training set."
_READERS = "the validation reads with threads of its own."
_ONE_KIND_OF_LAYER = "the layers of a decoder without ConvNeXt layers have no other form."

KEYS: dict[str, Key | Joint | Fallback | Fixed | Follows | Ignored] = {
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
    "one_epoch": Key("data.one_epoch", False),
    # data
    "training_set_kwargs.class_name": Fixed((_WDS, _FOLDER), "there is no other kind of data set."),
    "training_set_kwargs.path": Key("data.path"),
    "training_set_kwargs.resolution": Key("data.resolution", REQUIRED),
    "training_set_kwargs.conditional": Fallback("G_kwargs.conditional"),
    "training_set_kwargs.label_type": Joint("data.label_type"),
    "training_set_kwargs.filter_keys_path": Key("data.filter_keys_path", None),
    "training_set_kwargs.cls_to_text_path": Key("data.cls_to_text_path", None),
    "training_set_kwargs.data_augmentation": Key("data.data_augmentation", False),
    "training_set_kwargs.one_epoch": Fallback("one_epoch"),
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
    "validation_set_kwargs.class_name": Fixed((_WDS, _FOLDER), "there is no other kind of data set."),
    "validation_set_kwargs.path": Key("validation.path"),
    "validation_set_kwargs.resolution": Follows("training_set_kwargs.resolution"),
    "validation_set_kwargs.filter_keys_path": Key("validation.filter_keys_path"),
    "validation_set_kwargs.max_size": Joint("validation.num_images"),
    "validation_set_kwargs.xflip": Fixed((False,), _PLAIN),
    "validation_set_kwargs.data_augmentation": Fixed((False,), _PLAIN),
    "validation_set_kwargs.one_epoch": Fixed((False,), _PLAIN),
    "validation_set_kwargs.conditional": Ignored(_LABELS),
    "validation_set_kwargs.label_type": Ignored(_LABELS),
    "validation_set_kwargs.cls_to_text_path": Ignored(_LABELS),
    "validation_set_kwargs.use_labels": Ignored(_LABELS),
    "validation_set_kwargs.random_seed": Ignored("the images of a subset are evenly spread over the set."),
    "validation_data_loader_kwargs.num_workers": Ignored(_READERS),
    "validation_data_loader_kwargs.prefetch_factor": Ignored(_READERS),
    "validation_data_loader_kwargs.pin_memory": Ignored(_READERS),
    "validation_data_loader_kwargs.persistent_workers": Ignored(_READERS),
    # encoder
    "G_kwargs.class_name": Fixed(("networks.generator.Generator",), "there is no other generator."),
    "G_kwargs.vfm_name": Key("encoder.vfm_name"),
    "G_kwargs.scale_factor": Key("encoder.scale_factor"),
    "G_kwargs.patch_from_layers": Key("encoder.patch_from_layers"),
    "G_kwargs.patch_in_dimensions": Key("encoder.patch_in_dimensions"),
    # latent
    "G_kwargs.patch_out_dimensions": Key("latent.patch_out_dimensions"),
    "G_kwargs.compression_mode": Key("latent.compression_mode", REQUIRED),
    "G_kwargs.how_to_compress": Key("latent.how_to_compress", REQUIRED),
    "G_kwargs.attnproj_quant_layers": Key("latent.attnproj_quant_layers", 1),
    "G_kwargs.resolution_compression_factor": Key("latent.resolution_compression_factor", 16),
    "G_kwargs.z_dimension": Key("latent.z_dimension", 32),
    "G_kwargs.vocab_width": Key("latent.vocab_width", 64),
    "G_kwargs.vocab_size": Key("latent.vocab_size", 32768),
    "G_kwargs.num_codebooks": Key("latent.num_codebooks", 8),
    # decoder
    "G_kwargs.conditional": Key("decoder.conditional", REQUIRED),
    "G_kwargs.label_type": Joint("decoder.label_type"),
    "G_kwargs.label_dim": Key("decoder.label_dim", 1000),
    "G_kwargs.how_to_decompress": Key("decoder.how_to_decompress", REQUIRED),
    "G_kwargs.decompress_factor": Key("decoder.decompress_factor", REQUIRED),
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
    "G_kwargs.use_multiscale_output": Joint("decoder.use_multiscale_output"),
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
    "G_kwargs.synthesis_kwargs.use_noise": Fixed((True,), _ONE_KIND_OF_LAYER),
    "G_kwargs.synthesis_kwargs.activation": Fixed(("lrelu",), _ONE_KIND_OF_LAYER),
    "G_kwargs.synthesis_kwargs.layer_scale_init": Fixed((1e-5,), _ONE_KIND_OF_LAYER),
    "G_kwargs.synthesis_kwargs.gn_groups": Fixed((32,), _ONE_KIND_OF_LAYER),
    "G_kwargs.synthesis_kwargs.kernel_size": Fixed((3,), _ONE_KIND_OF_LAYER),
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
    "loss_kwargs.use_equivariance_regularization": Key("equivariance.use_equivariance_regularization", REQUIRED),
    "loss_kwargs.l1_pixel_loss_weight": Key("losses.l1_pixel.weight", 1.0),
    "loss_kwargs.l2_pixel_loss_weight": Key("losses.l2_pixel.weight", 0),
    "loss_kwargs.perceptual_loss_weight": Key("losses.perceptual.weight", 10.0),
    "loss_kwargs.ssim_loss_weight": Key("losses.ssim.weight", 0),
    "loss_kwargs.multiscale_block_indices": Joint("losses.multiscale_pixel.weights"),
    "loss_kwargs.multiscale_pixel_loss_weights": Joint("losses.multiscale_pixel.weights"),
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
    "loss_kwargs.blur_init_sigma": Key("discriminator.blur_init_sigma", 2),
    "loss_kwargs.blur_fade_kimg": Key("discriminator.blur_fade_kimg", 0),
    "loss_kwargs.patchgan_discriminator_loss_weight": Key("losses.patchgan.weight", 0),
    "loss_kwargs.patchgan_discriminator_loss_type": Key("losses.patchgan.loss_type", "mse"),
    "loss_kwargs.use_patchgan_disc_warmup": Key("losses.patchgan.use_disc_warmup", False),
    "loss_kwargs.feature_matching_loss_weight": Key("losses.feature_matching.weight", 1.0),
    "loss_kwargs.matching_aware_loss_weight": Key("losses.matching_aware.weight", 0),
    "loss_kwargs.matching_aware_loss_start_kimg": Key("losses.matching_aware.start_kimg", 0),
    "loss_kwargs.clip_loss_weight": Key("losses.clip.weight", 0),
    "loss_kwargs.clip_loss_start_kimg": Key("losses.clip.start_kimg", 0),
    "loss_kwargs.vq_loss_weight": Key("losses.vq.weight", 1.0),
    "G_kwargs.vocab_beta": Key("losses.vq.vocab_beta", 0.25),
    "loss_kwargs.entropy_loss_weight": Key("losses.entropy.weight", 0),
    "G_kwargs.use_entropy_loss": Fixed((True, False), "give true or false."),
    "G_kwargs.entropy_temp": Key("losses.entropy.entropy_temp", 0.01),
}

# What a term needs to have any effect in the reference: (own term, own switch), and per compression mode.
ADVERSARIAL_TERMS = (
    ("stylegan_t", "discriminator.use_stylegan_t_discriminator"),
    ("matching_aware", "discriminator.use_stylegan_t_discriminator"),
    ("patchgan", "discriminator.use_patchgan_discriminator"),
    ("feature_matching", "discriminator.use_patchgan_discriminator"),
    ("feature_matching", "discriminator.get_interm_feat"),
)
DISCRIMINATORS = ("discriminator.use_stylegan_t_discriminator", "discriminator.use_patchgan_discriminator")
TERMS_OF_THE_OTHER_MODE = {"continuous": ("vq", "entropy"), "discrete": ("kl",)}


def _reference_names() -> dict[str, str]:
    """Our dotted key -> the reference key that it was translated from."""
    names = {
        "data.source": "training_set_kwargs.class_name",
        "training.precision": "G_kwargs.num_fp16_res",
        "validation.source": "validation_set_kwargs.class_name",
        "validation.every_ticks": "image_snapshot_ticks",
    }
    for name, entry in KEYS.items():
        if isinstance(entry, (Key, Joint)):
            names.setdefault(entry.own, name)
    return names


REFERENCE_NAMES = _reference_names()


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
    notes: list[str]
    problems: list[Problem]


@dataclass
class _Draft:
    """A translation in the making: the reference's keys and ours, both flat and dotted."""

    given: dict[str, Any]
    own: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def refuse(self, name: str, message: str) -> None:
        self.problems.append(Problem(name, message))


def is_reference_layout(values: Mapping[str, Any]) -> bool:
    """Whether a configuration is written in the reference's layout."""
    return any(group in values for group in GROUPS)


def translate(source: Source) -> Translation:
    """Translate a file of the reference's layout; what is wrong in it is collected, not raised."""
    draft = _flatten(source.values)
    for name, entry in KEYS.items():
        if isinstance(entry, Fallback) and name in draft.given:
            draft.given.setdefault(entry.other, draft.given[name])
    _check_names_and_values(draft)
    _copy(draft)
    _translate_data_set(draft)
    _translate_validation(draft)
    _translate_multiscale(draft)
    _translate_numerics_and_logging(draft)
    _drop_idle_terms(draft)
    _drop_idle_discriminators(draft)
    return Translation(_to_source(draft, source), draft.notes, draft.problems)


def _flatten(values: Mapping[str, Any]) -> _Draft:
    """The leaves of the known groups by dotted key."""
    draft = _Draft({})

    def walk(mapping: Mapping[str, Any], prefix: str) -> None:
        for key, value in mapping.items():
            name = f"{prefix}{key}"
            if name not in GROUPS:
                draft.given[name] = value
            elif isinstance(value, Mapping):
                walk(value, f"{name}.")
            elif value is not None or name in REQUIRED_GROUPS:
                draft.refuse(name, f"found {value!r}, expected a mapping of keys.")

    walk(values, "")
    for group in REQUIRED_GROUPS:
        if group not in values:
            draft.refuse(group, "missing. This group is required.")
    return draft


def _check_names_and_values(draft: _Draft) -> None:
    for name, value in draft.given.items():
        entry = KEYS.get(name)
        if entry is None:
            draft.refuse(name, f"unknown key. Closest: {_nearest_name(name)}.")
        elif isinstance(entry, Fixed) and value not in entry.accepted:
            accepted = " or ".join("null" if item is None else repr(item) for item in entry.accepted)
            draft.refuse(name, f"found {value!r}, expected {accepted}: {entry.reason}")
        elif isinstance(entry, Ignored):
            draft.notes.append(f"{name} has no effect here: {entry.reason}")
        elif isinstance(entry, Follows):
            deciding = KEYS[entry.other]
            assert isinstance(deciding, Key)
            expected = entry.derive(draft.given.get(entry.other, deciding.default))
            if expected not in (ABSENT, REQUIRED) and value != expected:
                draft.refuse(name, f"found {value!r}, but {entry.other} makes it {expected!r}; leave this key out.")


def _nearest_name(name: str) -> str:
    """The closest key of the same group; or the full name of a key that is spelt like this in another group."""
    group, _, leaf = name.rpartition(".")
    elsewhere = [known for known in KEYS if known.rpartition(".")[2] == leaf]
    if len(elsewhere) == 1:
        return elsewhere[0]
    siblings = [known.rpartition(".")[2] for known in (*KEYS, *GROUPS) if known.rpartition(".")[0] == group]
    return closest(leaf, siblings) or ""


def _copy(draft: _Draft) -> None:
    """The keys that both layouts have, and the reference's defaults of those that are not given."""
    for name, entry in KEYS.items():
        if not isinstance(entry, Key):
            continue
        if name in draft.given:
            draft.own[entry.own] = draft.given[name]
        elif entry.default is REQUIRED:
            draft.refuse(name, "missing. The reference has no default; give it a value.")
        elif entry.default is not ABSENT:
            draft.own[entry.own] = entry.default


def _translate_data_set(draft: _Draft) -> None:
    """Kind of data set, and labels of the batches and of the decoder."""
    given, own = draft.given, draft.own
    own["data.source"] = _kind_of_data_set(draft, "training_set_kwargs")
    is_folder = own["data.source"] != "webdataset"
    if is_folder:
        draft.notes.append("images that are not square are cropped to the middle; the reference stretches them.")
    label_type = given.get("training_set_kwargs.label_type", given.get("G_kwargs.label_type", "text"))
    has_labels = not is_folder or given.get("training_set_kwargs.use_labels", False)
    own["data.label_type"] = label_type if has_labels else "none"
    own["decoder.label_type"] = given.get("G_kwargs.label_type", label_type)
    filter_path = own["data.filter_keys_path"]
    if isinstance(filter_path, str) and filter_path.endswith(".pkl"):
        draft.notes.append(
            f"data.filter_keys_path {filter_path} is read as a list of strings and nothing else; "
            "imagenet_info/scan_keys.py writes such a list as text where the file is not there."
        )


def _kind_of_data_set(draft: _Draft, group: str) -> str:
    name, path = f"{group}.class_name", draft.given.get(f"{group}.path")
    if name not in draft.given:
        draft.refuse(name, f"missing. Give {_WDS} or {_FOLDER}.")
    if draft.given.get(name) != _FOLDER:
        return "webdataset"
    return "zip" if isinstance(path, str) and path.lower().endswith(".zip") else "folder"


def _translate_validation(draft: _Draft) -> None:
    """The reference reconstructs its validation set, if it has one, with every image snapshot."""
    given, own = draft.given, draft.own
    if not any(name.startswith("validation_set_kwargs.") for name in given):
        return
    own["validation.source"] = _kind_of_data_set(draft, "validation_set_kwargs")
    own["validation.every_ticks"] = own["logging.image_snapshot_ticks"]
    if given.get("validation_set_kwargs.max_size") is not None:
        own["validation.num_images"] = given["validation_set_kwargs.max_size"]
    if own["validation.every_ticks"] is None:
        draft.notes.append("image_snapshot_ticks is null, so there is no validation.")
        draft.own = {key: value for key, value in own.items() if not key.startswith("validation.")}


def _translate_multiscale(draft: _Draft) -> None:
    """`multiscale_block_indices` count the images below full resolution from the largest; here sides are named."""
    given, own = draft.given, draft.own
    names = ("loss_kwargs.multiscale_block_indices", "loss_kwargs.multiscale_pixel_loss_weights")
    indices, weights = (given.get(name, []) for name in names)
    for name, values in zip(names, (indices, weights)):
        if not isinstance(values, list):
            draft.refuse(name, f"found {values!r}, expected a list.")
            return
    own["decoder.use_multiscale_output"] = given.get("G_kwargs.use_multiscale_output", len(indices) > 0)
    if len(indices) != len(weights):
        draft.refuse(names[1], f"{len(weights)} weights for {len(indices)} blocks {indices}; give one per block.")
        return
    side, num_blocks = own.get("data.resolution"), own["decoder.num_blocks"]
    if not (_is_count(side) and _is_count(num_blocks)):
        return
    wrong = [i for i in indices if not _is_count(i) or i > num_blocks - 2 or indices.count(i) > 1]
    if wrong:
        draft.refuse(
            names[0], f"found {wrong[0]!r} in {indices}, expected each of 0 (largest) to {num_blocks - 2} at most once."
        )
        return
    sides = [side >> (i + 1) for i in indices]
    own["losses.multiscale_pixel.weights"] = dict(zip(sides, weights))
    if sides:
        draft.notes.append(f"{names[0]} {indices} count from the largest image below full size: sides {sides}.")


def _translate_numerics_and_logging(draft: _Draft) -> None:
    own = draft.own
    blocks = own["decoder.num_fp16_res"]
    own["training.precision"] = "fp16" if _is_count(blocks) and blocks > 0 else "fp32"
    if own["logging.wandb_project_name"] is None or own["logging.wandb_run_name"] is None:
        own["logging.wandb_project_name"] = own["logging.wandb_run_name"] = None  # it starts only if both are set
    if own["discriminator.use_patchgan_discriminator"] is True:
        draft.notes.append(
            "the reference drops every other loss after the first step with a PatchGAN; here the file's weights rule "
            "(losses.patchgan.disable_reconstruction_when_patchgan drops them)."
        )


def _drop_idle_terms(draft: _Draft) -> None:
    """Leave out the terms that have no effect in the reference, with a note where one was asked for."""
    own = draft.own
    reasons = {
        term: f"{REFERENCE_NAMES[switch]} is false" for term, switch in ADVERSARIAL_TERMS if own[switch] is False
    }
    mode = own.get("latent.compression_mode")
    for term in TERMS_OF_THE_OTHER_MODE.get(mode, ()) if isinstance(mode, str) else ():
        reasons[term] = f"G_kwargs.compression_mode is {mode}"
    if not draft.given.get("G_kwargs.use_entropy_loss", False):
        reasons.setdefault("entropy", "G_kwargs.use_entropy_loss is false")
    for term in {key.split(".")[1] for key in own if key.startswith("losses.")}:
        weight = f"losses.{term}.weight"
        if term == "multiscale_pixel":
            idle = not any(own.get("losses.multiscale_pixel.weights", {}).values())
        else:
            idle = _is_zero(own[weight]) or term in reasons
            if term in reasons and not _is_zero(draft.given.get(REFERENCE_NAMES[weight], 0)):
                draft.notes.append(f"{REFERENCE_NAMES[weight]} has no effect, because {reasons[term]}; left out.")
        if idle:
            draft.own = {key: value for key, value in draft.own.items() if not key.startswith(f"losses.{term}.")}


def _drop_idle_discriminators(draft: _Draft) -> None:
    """Leave out the discriminators that no term uses; the reference builds them and never trains them."""
    for switch in DISCRIMINATORS:
        terms = [term for term, needed in ADVERSARIAL_TERMS if needed == switch]
        if draft.own[switch] is True and not any(f"losses.{term}.weight" in draft.own for term in terms):
            draft.own[switch] = False
            draft.notes.append(f"{REFERENCE_NAMES[switch]} is true, but no loss with a weight uses it; left out.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0


def _to_source(draft: _Draft, source: Source) -> Source:
    values: dict[str, Any] = {"losses": {}}
    origins = dict(source.origins)
    for dotted, value in draft.own.items():
        *sections, leaf = dotted.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        target[leaf] = value
        name = REFERENCE_NAMES[dotted]
        origins[(*sections, leaf)] = source.origin(tuple(name.split(".")))
    return Source(source.path, values, origins, REFERENCE_NAMES)
