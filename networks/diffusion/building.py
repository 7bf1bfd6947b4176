"""Diffusion transformers by their configuration, and whole ones from checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from common.config import Source, build
from common.errors import CheckpointError, UserError
from common.registry import Registry
from networks.diffusion.config import LightningDiTConfig, REGSiTConfig, TransformerConfig
from networks.diffusion.folder import load_diffusion_weights, read_diffusion_folder
from networks.diffusion.lightningdit import LightningDiT
from networks.diffusion.reg_sit import REGSiT
from networks.diffusion.transformer import DiffusionTransformer

CONFIGS: Registry = Registry("diffusion model", {"lightningdit": LightningDiTConfig, "reg": REGSiTConfig})
_NETWORKS: dict[type[TransformerConfig], type[DiffusionTransformer]] = {
    LightningDiTConfig: LightningDiT,
    REGSiTConfig: REGSiT,
}


def build_network(config: TransformerConfig) -> DiffusionTransformer:
    """The network of a configuration, with initial weights. Raises: ConfigError if keys contradict one another."""
    return _NETWORKS[type(config)](config)


def load_network(
    path: str | Path, config: TransformerConfig | None = None, weights: Literal["ema", "raw"] = "ema"
) -> DiffusionTransformer:
    """A network with the weights of a checkpoint, in eval mode and frozen.

    Args:
        path: checkpoint or run folder, or a file of the reference.
        config: of the network in a file; None for a folder, which carries its own.
        weights: the EMA of the weights, or the weights themselves.

    Raises: UserError if there is nothing, it is damaged, or it does not fit the configuration.
    """
    is_folder = Path(path).is_dir()
    if is_folder and config is not None:
        raise UserError(f"{path}: a checkpoint folder carries the shape of its network; do not give another one.")
    if not is_folder and config is None:
        if not Path(path).exists():
            raise CheckpointError(f"{path}: does not exist; expected a checkpoint or run folder, or a reference file.")
        raise UserError(
            f"{path}: a file does not carry the shape of its network; give that of LightningDiT or REG, such as "
            "model_type LightningDiT-XL/1 or SiT-XL/1."
        )
    network = build_network(config or stored_network_config(path))
    load_diffusion_weights(network, path, weights)
    return network.eval().requires_grad_(False)


def stored_network_config(path: str | Path) -> TransformerConfig:
    """What a checkpoint or run folder says of its network.

    Raises: CheckpointError if there is no diffusion model in it; ConfigError if what it says is not valid.
    """
    folder = read_diffusion_folder(path)
    source = Source(str(folder.path / "config.json"), folder.model["network"])
    return build(CONFIGS[folder.model["model_type"]], source)
