"""Files in the reference's layout: what they mean here, and what is refused under which name."""

from __future__ import annotations

import contextlib

import pytest

from common.config import Source, load_source
from common.errors import ConfigError
from configs.reference import KEYS, REFERENCE_NAMES, Fallback, Follows, is_reference_layout, translate
from configs.schema import EXPERIMENTS, check, load_config
from tests.configs.reference_layout import change
from tests.configs.schema_keys import schema_keys


@pytest.fixture
def report(reference_stage):
    """The lines of the report on stage 0 with some keys changed."""

    def lines(changes: dict) -> list[str]:
        with pytest.raises(ConfigError) as error:
            load_config(reference_stage(0, changes))
        return [line.strip() for line in str(error.value).splitlines()[1:]]

    return lines


@pytest.fixture
def load(reference_stage):
    """The configuration and the notes of stage 0 with some keys changed."""

    def loaded(changes: dict, stage: int = 0):
        result = load_config(reference_stage(stage, changes))
        return result.config, result.notes

    return loaded


# --- the table -------------------------------------------------------------------------------------------------


def test_every_translated_key_exists_here():
    assert set(REFERENCE_NAMES) <= set(schema_keys(EXPERIMENTS["vfm_vae"]))


def test_every_key_that_refers_to_another_refers_to_a_known_one():
    assert all(entry.other in KEYS for entry in KEYS.values() if isinstance(entry, (Follows, Fallback)))


def test_the_layout_is_told_from_its_groups(reference_stage):
    assert is_reference_layout(load_source(reference_stage(0)).values)
    assert not is_reference_layout({"run": {}, "training": {}})


# --- meaning ---------------------------------------------------------------------------------------------------


def test_what_a_file_leaves_out_has_the_reference_default(load, remove):
    changes = {"D_kwargs": {}, "G_opt_kwargs": {}, "G_kwargs.synthesis_kwargs": {}, "run_dir": remove}
    changes["loss_kwargs"] = {"use_equivariance_regularization": True}
    changes |= {name: remove for name in ("batch_size", "ema_kimg", "total_kimg", "kimg_per_tick", "random_seed")}
    changes |= {f"G_kwargs.{name}": remove for name in ("z_dim_for_mapping_mlp_output", "legacy", "num_fp16_res")}
    changes |= {f"training_set_kwargs.{name}": remove for name in ("data_augmentation", "filter_keys_path")}
    changes |= {"G_kwargs.attn_block_indices": remove, "G_kwargs.attn_depths": remove}
    config, _ = load(changes)
    terms = {name: term.weight for name, term in config.enabled_losses().items()}
    assert terms == {"l1_pixel": 1.0, "perceptual": 10.0, "kl": 1e-6, "stylegan_t": 1.0}
    assert config.decoder.use_multiscale_output is False
    assert (config.decoder.legacy, config.decoder.num_fp16_res, config.training.precision) == (False, 3, "fp16")
    assert (config.decoder.num_res_blocks, config.decoder.z_dim_for_mapping_mlp_output) == (3, 128)
    assert config.discriminator.use_stylegan_t_discriminator is True
    assert (config.run.run_dir, config.run.random_seed) == (".", 42)
    assert (config.training.batch_size, config.training.total_kimg, config.training.ema_kimg) == (4, 25000, 10)
    assert (config.optimizer.generator.lr, config.optimizer.generator.betas) == (1e-3, (0.9, 0.999))
    assert (config.data.data_augmentation, config.data.filter_keys_path) == (False, None)


def test_multiscale_indices_count_from_the_largest_image(load):
    config, notes = load(
        {"loss_kwargs.multiscale_block_indices": [3, 0], "loss_kwargs.multiscale_pixel_loss_weights": [0.3, 0.7]}
    )
    assert config.losses.multiscale_pixel.weights == {16: 0.3, 128: 0.7}
    assert config.losses.multiscale_pixel.end_kimg == 5000
    assert any("count from the largest image below full size: sides [16, 128]" in note for note in notes)


def test_the_multiscale_window_ends_at_2000_kimg_unless_said_otherwise(load, remove):
    config, _ = load({"loss_kwargs.multiscale_pixel_loss_end_kimg": remove})
    assert config.losses.multiscale_pixel.end_kimg == 2000


def test_multiscale_weights_of_zero_drop_the_term_and_keep_the_architecture(load):
    config, _ = load({"loss_kwargs.multiscale_pixel_loss_weights": [0, 0, 0, 0, 0]})
    assert config.losses.multiscale_pixel is None
    assert config.decoder.use_multiscale_output is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"multiscale_pixel_loss_weights": [0.1] * 4},
            "loss_kwargs.multiscale_pixel_loss_weights: 4 weights for 5 blocks [0, 1, 2, 3, 4]; give one per block.",
        ),
        (
            {"multiscale_block_indices": [0, 1, 2, 3, 5]},
            "loss_kwargs.multiscale_block_indices: found 5 in [0, 1, 2, 3, 5], expected each of 0 (largest) to 4",
        ),
        ({"multiscale_block_indices": [0, 1, 2, 3, 3]}, "loss_kwargs.multiscale_block_indices: found 3 in"),
        ({"multiscale_block_indices": 3}, "loss_kwargs.multiscale_block_indices: found 3, expected a list."),
    ],
)
def test_multiscale_lists_that_do_not_fit_are_refused(report, changes, message):
    lines = report({f"loss_kwargs.{name}": value for name, value in changes.items()})
    assert len(lines) == 1
    assert lines[0].startswith(message)


def test_fp16_follows_the_number_of_fp16_blocks(load):
    assert load({"G_kwargs.num_fp16_res": 0})[0].training.precision == "fp32"
    assert load({"G_kwargs.num_fp16_res": 1})[0].training.precision == "fp16"


def test_adversarial_terms_need_their_discriminator(load):
    config, notes = load({"D_kwargs.use_patchgan_discriminator": False}, stage=3)
    assert list(config.enabled_losses()) == ["multiscale_pixel", "stylegan_t"]
    assert (
        "loss_kwargs.patchgan_discriminator_loss_weight has no effect, because D_kwargs.use_patchgan_discriminator "
        "is false; left out." in notes
    )


def test_a_discriminator_without_a_term_is_left_out(load):
    config, notes = load({"loss_kwargs.stylegan_t_discriminator_loss_weight": 0})
    assert not config.discriminator.enabled
    assert "D_kwargs.use_stylegan_t_discriminator is true, but no loss with a weight uses it; left out." in notes


def test_discrete_mode_swaps_kl_for_the_codebook_losses(load):
    config, notes = load({"G_kwargs.compression_mode": "discrete", "loss_kwargs.compression_mode": "discrete"})
    assert config.losses.kl is None
    assert config.losses.vq.weight == 1.0
    assert any(note.startswith("loss_kwargs.kl_loss_weight has no effect") for note in notes)
    assert (config.latent.vocab_size, config.latent.vocab_width, config.latent.num_codebooks) == (32768, 64, 8)
    assert (config.losses.vq.vocab_beta, config.losses.entropy) == (0.25, None)


def test_the_entropy_loss_needs_its_switch(load):
    changes = {
        "G_kwargs.compression_mode": "discrete",
        "G_kwargs.vocab_beta": 0.5,
        "G_kwargs.entropy_temp": 0.1,
        "loss_kwargs.compression_mode": "discrete",
        "loss_kwargs.entropy_loss_weight": 0.2,
    }
    config, notes = load(changes)
    assert (config.losses.vq.vocab_beta, config.losses.entropy) == (0.5, None)
    reason = "because G_kwargs.use_entropy_loss is false; left out."
    assert f"loss_kwargs.entropy_loss_weight has no effect, {reason}" in notes
    config, _ = load({**changes, "G_kwargs.use_entropy_loss": True})
    assert (config.losses.entropy.weight, config.losses.entropy.entropy_temp) == (0.2, 0.1)


@pytest.mark.parametrize(("path", "source"), [("images", "folder"), ("images.zip", "zip"), ("a.b/IMAGES.ZIP", "zip")])
def test_the_image_folder_class_takes_a_folder_or_a_zip(load, remove, path, source):
    changes = {f"training_set_kwargs.{name}": remove for name in ("filter_keys_path", "cls_to_text_path")}
    changes["training_set_kwargs.class_name"] = "training.data_zip.ImageFolderDataset"
    changes |= {
        "training_set_kwargs.path": path,
        "training_set_kwargs.max_size": 100,
        "training_set_kwargs.xflip": True,
    }
    changes["training_data_loader_kwargs"] = {"num_workers": 1, "prefetch_factor": 2, "pin_memory": True}
    config, notes = load(changes)
    assert (config.data.source, config.data.label_type) == (source, "none")
    assert (config.data.max_size, config.data.xflip) == (100, True)
    assert (config.data.workers, config.data.prefetch_batches) == (1, 2)
    assert any("training_data_loader_kwargs.pin_memory has no effect here" in note for note in notes)
    changes |= {"training_set_kwargs.use_labels": True, "training_set_kwargs.label_type": "cls2id"}
    assert load(changes)[0].data.label_type == "cls2id"


def test_wandb_needs_both_names(load):
    assert load({})[0].logging.wandb_project_name == "VFM-VAE"
    assert load({"wandb_run_name": None})[0].logging.wandb_project_name is None


def test_one_epoch_counts_at_the_top_and_else_in_the_data_set(load, remove):
    assert load({"one_epoch": remove, "training_set_kwargs.one_epoch": True})[0].data.one_epoch is True
    assert load({"one_epoch": False, "training_set_kwargs.one_epoch": True})[0].data.one_epoch is False


def test_a_pickled_key_list_stays_and_the_scanner_is_named(load, reference_stage):
    config, notes = load({})
    assert config.data.filter_keys_path == "imagenet_info/imagenet_train_hr_indices.pkl"
    assert any("imagenet_info/scan_keys.py" in note for note in notes)


FOLDER = "training.data_zip.ImageFolderDataset"


def test_a_validation_set_is_reconstructed_with_every_image_snapshot(load):
    given = {"class_name": FOLDER, "path": "pictures.zip", "resolution": 256, "max_size": 64, "use_labels": False}
    config, notes = load({"validation_set_kwargs": given, "validation_data_loader_kwargs": {"num_workers": 2}})
    validation = config.validation
    assert (validation.source, validation.path, validation.num_images) == ("zip", "pictures.zip", 64)
    assert validation.every_ticks == config.logging.image_snapshot_ticks == 100
    assert "validation_data_loader_kwargs.num_workers has no effect here: the validation reads with threads of" in str(
        notes
    )


@pytest.mark.parametrize("empty", [{}, None])
def test_without_a_validation_set_or_snapshots_there_is_no_validation(load, empty):
    assert load({"validation_set_kwargs": empty})[0].validation is None
    given = {"class_name": FOLDER, "path": "pictures"}
    config, notes = load({"validation_set_kwargs": given, "image_snapshot_ticks": None})
    assert config.validation is None
    assert "image_snapshot_ticks is null, so there is no validation." in notes


def test_overrides_of_a_reference_file_use_the_names_of_this_project(reference_stage):
    loaded = load_config(reference_stage(0), ["decoder.legacy=false", "losses.kl.weight=1e-5"])
    assert loaded.config.decoder.legacy is False
    assert loaded.config.losses.kl.weight == 1e-5


# --- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"G_kwargs.use_gausian_blur": True}, "G_kwargs.use_gausian_blur: unknown key. Closest: use_gaussian_blur."),
        ({"batch_sise": 4}, "batch_sise: unknown key. Closest: batch_size."),
        ({"D_kwarg": {}}, "D_kwarg: unknown key. Closest: D_kwargs."),
        ({"loss_kwargs.legacy": True}, "loss_kwargs.legacy: unknown key. Closest: G_kwargs.legacy."),
        ({"metrics": ["fid50k_full"]}, "metrics: found ['fid50k_full'], expected [] or null: these metrics cannot"),
        ({"G_kwargs.img_channels": 1}, "G_kwargs.img_channels: found 1, expected 3: images have 3 channels."),
        (
            {"G_kwargs.synthesis_kwargs.architecture": "resnet"},
            "G_kwargs.synthesis_kwargs.architecture: found 'resnet'",
        ),
        (
            {"validation_set_kwargs": {"path": "x"}},
            "validation_set_kwargs.class_name: missing. Give training.data_wds.",
        ),
        ({"validation_set_kwargs": {"xflip": True}}, "validation_set_kwargs.xflip: found True, expected False:"),
        ({"validation_set_kwargs": {"resolution": 8}}, "validation_set_kwargs.resolution: found 8, but training_set_"),
        ({"training_set_kwargs.processed_tar_read_dir": "x"}, "training_set_kwargs.processed_tar_read_dir: found 'x'"),
        ({"training_set_kwargs.class_name": "x.Y"}, "training_set_kwargs.class_name: found 'x.Y', expected 'training."),
        ({"G_kwargs.class_name": "x.Y"}, "G_kwargs.class_name: found 'x.Y', expected 'networks.generator.Generator'"),
        ({"G_opt_kwargs.class_name": "torch.optim.SGD"}, "G_opt_kwargs.class_name: found 'torch.optim.SGD', expected"),
        ({"G_opt_kwargs.weight_decay": 0.1}, "G_opt_kwargs.weight_decay: found 0.1, expected 0:"),
        ({"G_kwargs.img_resolution": 512}, "G_kwargs.img_resolution: found 512, but training_set_kwargs.resolution"),
        ({"G_kwargs.use_vf_loss": False}, "G_kwargs.use_vf_loss: found False, but loss_kwargs.vf_loss_weight makes it"),
        ({"loss_kwargs.vfm_name": "dinov2"}, "loss_kwargs.vfm_name: found 'dinov2', but G_kwargs.vfm_name makes it"),
        ({"G_kwargs": None}, "G_kwargs: found None, expected a mapping of keys."),
        ({"loss_kwargs": [1]}, "loss_kwargs: found [1], expected a mapping of keys."),
    ],
)
def test_what_cannot_be_translated_is_refused_under_its_own_name(report, changes, message):
    assert any(line.startswith(message) for line in report(changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss_kwargs.kl_loss_weight": "much"},
            "losses.kl.weight (loss_kwargs.kl_loss_weight): found 'much', expected a number.",
        ),
        (
            {"batch_size": 4.5},
            "training.batch_size (batch_size): found 4.5, expected a whole number.",
        ),
        (
            {"G_kwargs.patch_in_dimensions": [1024]},
            "encoder.patch_from_layers (G_kwargs.patch_from_layers): 3 layers [0, 12, -1], but",
        ),
        (
            {"training_set_kwargs.resolution": 250},
            "data.resolution (training_set_kwargs.resolution): 250 is not divisible by",
        ),
        ({"network_snapshot_ticks": None}, "checkpoint.network_snapshot_ticks (network_snapshot_ticks): found null,"),
    ],
)
def test_a_wrong_value_is_reported_under_both_names(report, changes, message):
    assert any(line.startswith(message) for line in report(changes))


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("G_kwargs.compression_mode", "G_kwargs.compression_mode"),
        ("G_kwargs.vfm_name", "encoder.vfm_name (G_kwargs.vfm_name)"),
        ("G_kwargs.concat_z_block_indices", "decoder.concat_z_block_indices (G_kwargs.concat_z_block_indices)"),
        ("training_set_kwargs", "training_set_kwargs"),
        ("training_set_kwargs.class_name", "training_set_kwargs.class_name"),
        ("training_set_kwargs.resolution", "training_set_kwargs.resolution"),
        ("loss_kwargs.use_equivariance_regularization", "loss_kwargs.use_equivariance_regularization"),
    ],
)
def test_what_the_reference_requires_is_missing_by_name(report, remove, key, name):
    assert any(line.startswith(f"{name}: ") for line in report({key: remove}))


@pytest.mark.parametrize("value", [None, "text", -1, [None], {"a": 1}], ids=str)
def test_no_value_of_any_key_ends_in_a_traceback(stage_0_values, value):
    for name in KEYS:
        translation = translate(Source("file", change(stage_0_values, {name: value})))
        with contextlib.suppress(ConfigError):
            check(translation.source, translation.notes, translation.problems)
