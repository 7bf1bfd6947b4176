"""The four published stages one after the other, in small: each starts from the checkpoint of the one before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from common.checkpoint_folder import list_checkpoints
from configs.schema import load_config
from tests.configs.reference_layout import CHANGES, STAGE_0, change
from tests.trainer.conftest import build_trainer
from trainer.metrics import read_log

STAGES = ("0_strong_alignment", "1_weak_alignment", "2_ssim_fine_tuning", "3_patchgan_fine_tuning")
START_KIMG = (0, 20_000, 40_000, 41_000)
STEPS, BATCH = 2, 4
TRAINED = (
    ("compression.", "alignment.", "decoder."),
    ("compression.", "alignment.", "decoder."),
    ("decoder.",),
    ("decoder.blocks.3.",),  # of the blocks with 8, 16, 32 and 64 pixels, that above 32
)
IN_SMALL = {
    "data.resolution": 64,
    "data.filter_keys_path": None,
    "data.cls_to_text_path": None,
    "data.label_type": "none",
    "data.workers": 0,
    "encoder.patch_from_layers": [0, 2, -1],
    "encoder.patch_in_dimensions": [32, 32, 32],
    "latent.patch_out_dimensions": [8, 8, 16],
    "latent.resolution_compression_factor": 8,
    "latent.z_dimension": 4,
    "decoder.z_dim_for_mapping_mlp_output": 16,
    "decoder.num_blocks": 4,
    "decoder.channel_base": 2048,
    "decoder.channel_max": 32,
    "decoder.num_res_blocks": 1,
    "decoder.concat_z_block_indices": [0, 1, 2],
    "decoder.concat_z_mapped_dims": [64, 16, 16],
    "decoder.attn_block_indices": [0, 1],
    "decoder.attn_depths": [1, 1],
    "decoder.attn_heads": 4,
    "discriminator.backbone": "random_tiny",
    "losses.perceptual": None,  # VGG16 is not at hand
    "losses.multiscale_pixel.weights": {32: 0.1, 16: 0.1, 8: 0.1},
    "training.batch_size": BATCH,
    "training.kimg_per_tick": BATCH / 1000,
    "logging.wandb_project_name": None,
    "logging.image_snapshot_ticks": None,
    "run.device": "cpu",
}


def stage_file(layout: str, number: int, folder: Path) -> Path:
    """The YAML of a stage: this project's, or one in the reference's layout."""
    if layout == "own":
        return Path(f"configs/vfm_vae_f16d32_siglip2_stage_{STAGES[number]}.yaml")
    path = folder / f"reference_stage_{number}.yaml"
    path.write_text(yaml.safe_dump(change(yaml.safe_load(STAGE_0), CHANGES[number])), encoding="utf-8")
    return path


def newest(run_dir: Path) -> Path:
    return list_checkpoints(run_dir)[-1]


@pytest.mark.usefixtures("narrow_patchgan")
@pytest.mark.parametrize("layout", ["own", "reference"])
def test_each_stage_goes_on_from_the_one_before_it_and_trains_its_part(
    layout, tiny_encoder, tiny_data, tmp_path
) -> None:
    for number in range(4):
        values = {
            **IN_SMALL,
            "run.run_dir": str(tmp_path / str(number)),
            "data.path": str(tiny_data),
            "encoder.vfm_name": str(tiny_encoder),
            "training.init_from": str(tmp_path / str(number - 1)) if number else None,
            "training.init_kimg": START_KIMG[number],
            "training.total_kimg": START_KIMG[number] + STEPS * BATCH / 1000,
        }
        overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        config = load_config(stage_file(layout, number, tmp_path), overrides, require_runnable=True).config
        assert config.training.precision == "fp16"
        trainer = build_trainer(config)
        assert trainer.run()

        line = read_log(tmp_path / str(number) / "log.jsonl")[-1]
        assert line["guard/skipped_generator"] == line["guard/skipped_discriminator"] == 0
        assert {"discriminator/stylegan_t", "loss/stylegan_t", "loss_scale"} <= set(line)
        assert ("loss/vf" in line, "loss/ssim" in line, "loss/patchgan" in line) == (
            number < 2,
            number == 2,
            number == 3,
        )
        assert ("loss/multiscale_pixel" in line) == (number == 0)  # its window ends at 5,000 kimg
        if number == 0:
            continue
        before, after = (load_file(newest(tmp_path / str(n)) / "model_raw.safetensors") for n in (number - 1, number))
        moved = {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}
        moved.discard("decoder.mapping.x_avg")
        assert moved and all(name.startswith(TRAINED[number]) for name in moved)
        heads = [load_file(newest(tmp_path / str(n)) / "discriminators_raw.safetensors") for n in (number - 1, number)]
        assert any(name.startswith("patchgan.") for name in heads[1]) == (number == 3)
        shift = max((heads[1][name] - heads[0][name]).abs().max().item() for name in heads[0] if "bias" in name)
        assert 0 < shift < 10 * STEPS * config.optimizer.discriminator.lr  # it went on, and did not start anew
