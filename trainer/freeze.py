"""Train modes: which parts of the tokenizer are trained. A selection that matches nothing is an error."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from common.errors import UserError
from networks.vfm_vae import VFMVAETokenizer
from trainer.config import VFMVAETrainingConfig


@dataclass(frozen=True)
class Selection:
    """What a train mode selected: module names, and counts of parameters."""

    modules: list[str]
    trainable: int
    frozen: int


def select_trainable(model: VFMVAETokenizer, config: VFMVAETrainingConfig) -> Selection:
    """Switch gradients on for the parts that the train mode names and off for everything else.

    `train_all`: all but the encoder. `train_decoder`: the decoder with expansion and mapping network.
    `train_the_second_half_decoder`: blocks above `freeze_below_resolution` pixels and their latent branches.

    Raises: UserError if the mode selects no parameter.
    """
    names = _selected_modules(model, config)
    model.requires_grad_(False)
    for name in names:
        model.get_submodule(name).requires_grad_(True)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if trainable == 0:
        raise UserError(
            f"training.train_mode: {config.train_mode} selects no parameter; the blocks have "
            f"{model.decoder.resolutions} pixels and freeze_below_resolution is {config.freeze_below_resolution}."
        )
    return Selection(names, trainable, sum(p.numel() for p in model.parameters()) - trainable)


def _selected_modules(model: VFMVAETokenizer, config: VFMVAETrainingConfig) -> list[str]:
    if config.train_mode == "train_all":
        return list(model.trainable_parts())
    if config.train_mode == "train_decoder":
        return ["decoder"]
    upper = [k for k, side in enumerate(model.decoder.resolutions) if side > config.freeze_below_resolution]
    blocks = [f"decoder.blocks.{k}" for k in upper]
    return blocks + [f"decoder.latent_branches.{k}" for k in upper if str(k) in model.decoder.latent_branches]


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with gradients, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
