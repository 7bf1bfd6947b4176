"""The published stages in the reference's layout."""

from __future__ import annotations

import copy

STAGE_0 = """
run_dir: runs/stage0
random_seed: 42
wandb_project_name: VFM-VAE
wandb_run_name: stage0
training_set_kwargs:
  class_name: training.data_wds.WdsWrapper
  path: /data/imagenet
  resolution: 256
  conditional: False
  label_type: cls2text
  filter_keys_path: imagenet_info/imagenet_train_hr_indices.pkl
  cls_to_text_path: imagenet_info/imagenet_1k_cls_to_text.json
  data_augmentation: True
  one_epoch: False
G_kwargs:
  class_name: networks.generator.Generator
  vfm_name: /models/siglip2-large-patch16-512
  scale_factor: 2.0
  patch_from_layers: [0, 12, -1]
  patch_in_dimensions: [1024, 1024, 1024]
  patch_out_dimensions: [64, 64, 64]
  compression_mode: continuous
  how_to_compress: attnproj
  how_to_decompress: attnproj
  decompress_factor: 16
  attnproj_quant_layers: 1
  attnproj_post_quant_layers: 1
  resolution_compression_factor: 16
  z_dimension: 32
  z_pooled_resolution: 1
  z_dim_for_mapping_mlp_output: 512
  distmat_margin: 0.0
  cos_margin: 0.0
  distmat_weight: 1.0
  cos_weight: 1.0
  concat_z_block_indices: [0, 1, 2, 3]
  concat_z_mapped_dims: [512, 256, 128, 128]
  how_to_process_concat_z: unshuffle
  activation_for_concat_z: lrelu
  attn_block_indices: [0, 1, 2]
  attn_depths: [2, 2, 2]
  use_self_attn: True
  use_cross_attn: False
  use_convnext: True
  use_gaussian_blur: True
  add_additional_convnext: True
  equivariance_regularization_p_prior: 0.5
  equivariance_regularization_p_prior_scale: 0.25
  train_mode: train_all
  num_blocks: 6
  num_fp16_res: 3
  img_channels: 3
  legacy: True
  synthesis_kwargs: {channel_base: 32768, channel_max: 512, num_res_blocks: 2, architecture: skip}
D_kwargs:
  class_name: networks.discriminator.ProjectedDiscriminator
  use_stylegan_t_discriminator: True
  use_patchgan_discriminator: False
  get_interm_feat: False
G_opt_kwargs: {class_name: torch.optim.Adam, lr: 1e-4, betas: [0.0, 0.99], eps: 1e-8}
D_opt_kwargs: {class_name: torch.optim.Adam, lr: 1e-4, betas: [0.0, 0.99], eps: 1e-8}
loss_kwargs:
  class_name: training.loss.TotalLoss
  compression_mode: continuous
  kl_loss_weight: 1e-6
  vf_loss_weight: 5.0
  use_adaptive_vf_loss: True
  l1_pixel_loss_weight: 1.0
  l2_pixel_loss_weight: 0
  perceptual_loss_weight: 10.0
  ssim_loss_weight: 0
  multiscale_block_indices: [0, 1, 2, 3, 4]
  multiscale_pixel_loss_weights: [0.1, 0.1, 0.1, 0.1, 0.1]
  multiscale_pixel_loss_start_kimg: 0
  multiscale_pixel_loss_end_kimg: 5000
  stylegan_t_discriminator_loss_weight: 1.0
  patchgan_discriminator_loss_weight: 0
  feature_matching_loss_weight: 0
  use_stylegan_t_disc_warmup: False
  use_patchgan_disc_warmup: False
  use_equivariance_regularization: True
batch_size: 512
accumulate_gradients: 1
ema_kimg: 160
ema_rampup: 0.05
total_kimg: 20000
kimg_per_tick: 10
image_snapshot_ticks: 100
network_snapshot_ticks: 100
metrics: []
cudnn_benchmark: True
resume_path: null
resume_kimg: 0
resume_discriminator: True
one_epoch: False
"""

# What each later stage changes, by dotted key.
CHANGES = {
    0: {},
    1: {
        "run_dir": "runs/stage1",
        "training_set_kwargs.filter_keys_path": "imagenet_info/imagenet_train_hr_256_indices.pkl",
        "loss_kwargs.vf_loss_weight": 1.0,
        "total_kimg": 40000,
        "resume_path": "runs/stage0/network-snapshot-00020000.pth",
        "resume_kimg": 20000,
    },
    2: {
        "run_dir": "runs/stage2",
        "training_set_kwargs.filter_keys_path": "imagenet_info/imagenet_train_hr_256_indices.pkl",
        "G_kwargs.train_mode": "train_decoder",
        "G_opt_kwargs.lr": 5e-5,
        "D_opt_kwargs.lr": 5e-5,
        "loss_kwargs.kl_loss_weight": 0,
        "loss_kwargs.vf_loss_weight": 0,
        "loss_kwargs.use_adaptive_vf_loss": False,
        "loss_kwargs.perceptual_loss_weight": 2.0,
        "loss_kwargs.ssim_loss_weight": 1.0,
        "total_kimg": 41000,
        "resume_path": "runs/stage1/network-snapshot-00040000.pth",
        "resume_kimg": 40000,
    },
    3: {
        "run_dir": "runs/stage3",
        "G_kwargs.train_mode": "train_the_second_half_decoder",
        "G_opt_kwargs.lr": 5e-5,
        "D_opt_kwargs.lr": 5e-5,
        "D_kwargs.use_patchgan_discriminator": True,
        "D_kwargs.get_interm_feat": True,
        "loss_kwargs.kl_loss_weight": 0,
        "loss_kwargs.vf_loss_weight": 0,
        "loss_kwargs.use_adaptive_vf_loss": False,
        "loss_kwargs.l1_pixel_loss_weight": 0,
        "loss_kwargs.perceptual_loss_weight": 0,
        "loss_kwargs.patchgan_discriminator_loss_weight": 1.0,
        "loss_kwargs.feature_matching_loss_weight": 10.0,
        "loss_kwargs.use_equivariance_regularization": False,
        "total_kimg": 44000,
        "resume_path": "runs/stage2/network-snapshot-00041000.pth",
        "resume_kimg": 41000,
    },
}

REMOVE = object()


def change(values: dict, changes: dict) -> dict:
    """A copy with some dotted keys set, or removed."""
    values = copy.deepcopy(values)
    for dotted, value in changes.items():
        *groups, leaf = dotted.split(".")
        target = values
        for group in groups:
            target = target.setdefault(group, {})
        if value is REMOVE:
            target.pop(leaf)
        else:
            target[leaf] = value
    return values
