"""Configuration of a run: training schedule, optimisers, checkpoints, logging. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from common.config import StrictModel


class RunConfig(StrictModel):
    """Identity of a run."""

    run_dir: str = Field(description="Folder of the run: checkpoints, log, samples.")
    random_seed: NonNegativeInt = Field(42, description="Key of every random draw.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU when there is one.")


class AdamConfig(StrictModel):
    """Adam; with weight decay, AdamW."""

    lr: PositiveFloat = Field(1e-4, description="Learning rate.")
    betas: tuple[float, float] = Field(
        (0.0, 0.99),
        strict=False,  # YAML knows only lists
        description="Decay of the first and second moment.",
    )
    eps: PositiveFloat = Field(1e-8, description="Added to the root of the second moment.")
    weight_decay: NonNegativeFloat = Field(0.0, description="Decoupled weight decay.")
    decay_vectors: bool = Field(True, description="false: no weight decay of norms and biases.")
    warmup_kimg: NonNegativeFloat = Field(0.0, description="The rate rises linearly from 0 until here.")
    warmup_init_lr: NonNegativeFloat | None = Field(
        None, description="The rate rises from this instead, and reaches `lr` with the last step of the warm-up."
    )
    cosine_decay: bool = Field(False, description="After the warm-up the rate follows a half cosine to 0 at the end.")
    max_grad_norm: PositiveFloat | None = Field(None, description="Clip the gradient to this norm.")


class OptimizerConfig(StrictModel):
    """One optimiser per trained network."""

    generator: AdamConfig = Field(AdamConfig(), description="Optimiser of the tokenizer.")
    discriminator: AdamConfig = Field(AdamConfig(), description="Optimiser of the discriminators.")


class EquivarianceConfig(StrictModel):
    """Equivariance regularisation: one random scale and rotation per micro-batch."""

    use_equivariance_regularization: bool = Field(False, description="Transform latent or input, and the target.")
    equivariance_regularization_p_prior: float = Field(
        0.5, ge=0, le=1, description="Probability of the latent-space branch (scale and quarter turns)."
    )
    equivariance_regularization_p_prior_scale: float = Field(
        0.25, ge=0, le=1, description="Probability of a smaller input image in the other branch."
    )


class TrainingConfig(StrictModel):
    """Schedule and numerics that every system has."""

    batch_size: PositiveInt = Field(4, description="Images per optimiser step, over all ranks.")
    accumulate_gradients: PositiveInt = Field(1, description="Micro-batches per optimiser step on each rank.")
    total_kimg: PositiveFloat = Field(25000, description="Stop after so many thousand images.")
    kimg_per_tick: PositiveFloat = Field(4, description="Thousand images between two log lines.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="fp32; bf16 autocast; fp16 autocast with a scaled loss."
    )
    fused_optimizer: bool = Field(False, description="PyTorch's fused Adam.")
    cudnn_benchmark: bool = Field(True, description="Let cuDNN pick its kernels by timing.")
    init_from: str | None = Field(None, description="Checkpoint whose weights start a new run.")
    init_kimg: NonNegativeFloat = Field(
        0, description="Images seen by these weights, in thousands; they count for total_kimg."
    )
    init_optimizer: bool = Field(False, description="Also take the optimisers' state from init_from, a run of its own.")


class TokenizerTrainingConfig(TrainingConfig):
    """Schedule and numerics that every tokenizer has."""

    init_discriminator: bool = Field(True, description="Also take the discriminators from init_from.")
    channels_last: bool = Field(False, description="Store activations channels-last (faster convolutions).")


class VFMVAETrainingConfig(TokenizerTrainingConfig):
    """The same for VFM-VAE."""

    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="fp32; bf16 autocast; fp16 in the decoder's num_fp16_res upper blocks (CUDA)."
    )
    init_kimg: NonNegativeFloat = Field(
        0, description="Images seen by these weights, in thousands; at 0 the EMA starts anew."
    )
    train_mode: Literal["train_all", "train_decoder", "train_the_second_half_decoder"] = Field(
        "train_all", description="Which part of the tokenizer is trained; the encoder never is."
    )
    freeze_below_resolution: PositiveInt = Field(
        32, description="train_the_second_half_decoder trains the blocks above this resolution."
    )
    compile: bool = Field(
        False,
        description="Compile decoder and discriminators with torch.compile, once for every size of images that is "
        "drawn, which takes minutes.",
    )
    recompute_above_resolution: PositiveInt | None = Field(
        None,
        description="Decoder blocks above this resolution keep only their layers' inputs for the backward pass, which "
        "computes the rest again: less memory, more time; null: none.",
    )
    ema_kimg: NonNegativeFloat = Field(10, description="Half-life of the EMA in thousand images.")
    ema_rampup: PositiveFloat | None = Field(
        0.05, description="The half-life is at most this share of the images seen; null: constant."
    )
    share_generator_forward: bool = Field(
        False, description="One pass of the tokenizer serves both phases of a step; false: one for each."
    )
    share_decoder_backward: bool = Field(
        False,
        description="One backward pass of the decoder serves all terms and the adaptive VF weight, which then refers "
        "to all terms on images; false: it refers to the reconstruction terms, which takes a pass of their own.",
    )


class VFMTokTrainingConfig(TokenizerTrainingConfig):
    """The same for VFMTok; defaults are the published settings."""

    batch_size: PositiveInt = Field(128, description="Images per optimiser step, over all ranks.")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="What the EMA keeps of its value in every step.")


class GeneratorTrainingConfig(TrainingConfig):
    """Schedule and numerics of a network that generates latents or tokens."""

    ema_decay: float = Field(0.9999, ge=0, lt=1, description="What the EMA keeps of its value in every step.")


class DiffusionTrainingConfig(GeneratorTrainingConfig):
    """Schedule and numerics of a diffusion model; defaults are the published settings."""

    batch_size: PositiveInt = Field(1024, description="Latents per optimiser step, over all ranks.")


class DiffusionAdamConfig(AdamConfig):
    """Adam for a diffusion model; defaults are the published settings."""

    lr: PositiveFloat = Field(2e-4, description="Learning rate.")
    betas: tuple[float, float] = Field(
        (0.9, 0.95),
        strict=False,  # YAML knows only lists
        description="Decay of the first and second moment.",
    )


class GPTTrainingConfig(GeneratorTrainingConfig):
    """Schedule and numerics of an autoregressive model; defaults are the published settings."""

    batch_size: PositiveInt = Field(512, description="Images per optimiser step, over all ranks.")


class GPTAdamConfig(AdamConfig):
    """AdamW for an autoregressive model; defaults are the published settings."""

    betas: tuple[float, float] = Field(
        (0.9, 0.95),
        strict=False,  # YAML knows only lists
        description="Decay of the first and second moment.",
    )
    weight_decay: NonNegativeFloat = Field(0.05, description="Decoupled weight decay.")
    decay_vectors: bool = Field(False, description="false: no weight decay of norms and biases.")
    max_grad_norm: PositiveFloat | None = Field(1.0, description="Clip the gradient to this norm.")


class GuardConfig(StrictModel):
    """When a step is refused, and when a run gives up."""

    max_skipped_steps: PositiveInt = Field(
        20, description="After so many refused steps in a row: one roll-back to the last checkpoint, then a stop."
    )
    max_grad_norm_ratio: PositiveFloat = Field(
        100, description="A gradient norm above this times the median of the last 100 accepted steps is refused."
    )
    max_loss_jump: PositiveFloat = Field(
        10, description="A reconstruction loss above this times its value at the last accepted step is refused."
    )
    grace_kimg: NonNegativeFloat = Field(
        0, description="Rules on losses hold after so many thousand images of the run (published tokenizers: 50)."
    )


class TokenizerGuardConfig(GuardConfig):
    """The same for a tokenizer with discriminators."""

    max_discriminator_loss: PositiveFloat = Field(1e4, description="A discriminator loss beyond this is refused.")


class CheckpointConfig(StrictModel):
    """When checkpoints are written and how many stay."""

    network_snapshot_ticks: PositiveInt = Field(50, description="Ticks between checkpoints.")
    keep_last: PositiveInt = Field(3, description="Newest checkpoints that stay.")
    keep_every: PositiveInt | None = Field(None, description="Also keep every N-th checkpoint for good.")


class TokenizerCheckpointConfig(CheckpointConfig):
    """The same for a tokenizer."""

    include_encoder: bool = Field(False, description="Copy the frozen encoder into every checkpoint.")


class LoggingConfig(StrictModel):
    """What is shown besides the JSONL log, which is always written."""

    wandb_project_name: str | None = Field(None, description="Weights & Biases project; null: not used.")
    wandb_run_name: str | None = Field(None, description="Name of the run there.")
    wandb_mode: Literal["online", "offline", "disabled"] = Field("offline", description="How it is used.")
    tensorboard: bool = Field(False, description="Also write TensorBoard events to the run folder.")


class TokenizerLoggingConfig(LoggingConfig):
    """The same for a tokenizer, whose images can be looked at."""

    image_snapshot_ticks: PositiveInt | None = Field(50, description="Ticks between sample grids; null: none.")
    image_snapshot_count: PositiveInt = Field(16, description="Images per grid, those of the validation too.")
