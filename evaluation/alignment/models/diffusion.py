"""Features of LightningDiT and REG after each of their parts: which layer knows what, at which noise.

latents -> x_t = (1 - t) x + t eps, eps keyed by (seed, name) -> network -> mean over the tokens after each part

As everywhere in the project, t = 0 is data and t = 1 is noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from common.errors import DataError, UserError
from common.random import torch_generator
from common.registry import closest
from evaluation.alignment.config import DiffusionSection
from evaluation.alignment.models.base import FeatureModel, ReadShape
from evaluation.alignment.stored_latents import CleanLatents, StoredLatents
from networks.diffusion.building import load_network
from networks.diffusion.folder import read_diffusion_folder
from networks.diffusion.lightningdit import LightningDiT
from networks.diffusion.reg_sit import REGSiT
from networks.fingerprint import weights_fingerprint


class DiffusionFeatures(FeatureModel):
    """Tokens of noisy latents after parts of a diffusion transformer, averaged over the patches.

    REG's class token takes part in the computation, noisy like the latent, but not in the mean; only the outputs of its
    projectors are averaged over all tokens, the class token among them, as the alignment loss sees them.

    Args:
        network: in eval mode.
        parts: some of `network.feature_names`, or "all".
        timesteps: shares of noise, 0 to 1.
        use_label: tell the network the class of each image; else the null class.
        seed: key of the noise, with each image's name.

    Attributes:
        parts: in the order of computation.
    Raises: UserError for a part that the network does not have, timesteps that share a name, or a network without a
        null class where it takes one.
    """

    def __init__(
        self,
        network: LightningDiT | REGSiT,
        parts: Sequence[str] | str = "all",
        timesteps: Sequence[float] = (0.5,),
        use_label: bool = False,
        seed: int = 0,
    ):
        self.network, self.timesteps, self.seed = network, tuple(timesteps), seed
        self.parts = _known_parts(network, network.feature_names if parts == "all" else parts)
        if not use_label and network.config.class_dropout_prob == 0:
            raise UserError(
                "use_label: false takes the null class, but this network was trained without; set it to true."
            )
        self.label = None if use_label else network.null_label
        self.outputs = tuple(output_name(part, t) for t in self.timesteps for part in self.parts)
        if len(set(self.outputs)) < len(self.outputs):
            raise UserError(
                f"timesteps: found {list(timesteps)}, expected numbers that differ when rounded to 3 digits."
            )
        self.weights_sha256 = weights_fingerprint(network.state_dict())

    def features(self, clean: CleanLatents, t: float) -> dict[str, Tensor]:
        """{part: float32 [B, D]} at a share of noise; an image's do not depend on its neighbours."""
        labels = clean.labels if self.label is None else torch.full_like(clean.labels, self.label)
        x = self._noisy(clean.latents, clean.names, t, "alignment latent")
        inputs = [x, x.new_full((len(x),), t), labels]
        if clean.class_tokens is not None:
            inputs.append(self._noisy(clean.class_tokens, clean.names, t, "alignment class token"))
        computed = self.network.features(*inputs)
        return {part: tokens.float().mean(1) for part, tokens in self._wanted(computed)}

    def _noisy(self, clean: Tensor, names: Sequence[str], t: float, purpose: str) -> Tensor:
        """(1 - t) x + t eps, with eps keyed by (seed, name): an image's is the same at every t."""
        draws = [torch.randn(clean.shape[1:], generator=torch_generator(self.seed, purpose, name)) for name in names]
        return (1 - t) * clean + t * torch.stack(draws).to(clean)

    def _wanted(self, computed: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The parts that were asked for; nothing is computed beyond the last of them."""
        for part, tokens in computed:
            if part in self.parts:
                yield part, tokens
            if part == self.parts[-1]:
                return


def output_name(part: str, t: float) -> str:
    """Name of the features after a part at a share of noise."""
    return f"{part}_t{t:.3f}"


def _known_parts(network: LightningDiT | REGSiT, parts: Sequence[str]) -> list[str]:
    known = network.feature_names
    for part in parts:
        if part not in known:
            raise UserError(
                f"parts: found {part!r}, which the network does not have. Closest: {closest(part, known)}. Known: "
                f"{', '.join(known)}."
            )
    return [part for part in known if part in parts]


def load(section: DiffusionSection, device: torch.device, read_shape: ReadShape | None = None) -> DiffusionFeatures:
    """Load a checkpoint. Raises: UserError if it cannot be loaded, or has no such parts."""
    if section.lightningdit is not None and section.reg is not None:
        raise UserError(f"{section.checkpoint}: found shapes of LightningDiT and of REG, expected one of them.")
    network = load_network(section.checkpoint, section.lightningdit or section.reg, section.weights)
    assert isinstance(network, LightningDiT | REGSiT)
    return DiffusionFeatures(network.to(device), section.parts, section.timesteps, section.use_label, section.seed)


def open_latents(section: DiffusionSection, network: LightningDiT | REGSiT) -> StoredLatents:
    """The latents that a section names, checked to be those that its network takes.

    Raises: DataError if they are missing, damaged, or of another tokenizer or normalisation.
    """
    stored = StoredLatents(section.latents, section.latent_multiplier, isinstance(network, REGSiT))
    c = network.config
    expected = (c.in_channels, c.input_size, c.input_size)
    if stored.latent_shape != expected:
        raise DataError(
            f"{section.latents}: latents have the shape {list(stored.latent_shape)}, but the network of "
            f"{section.checkpoint} takes {list(expected)}; encode the images with the tokenizer that it was trained on."
        )
    if isinstance(network, REGSiT) and stored.class_width != network.config.z_dims[0]:
        raise DataError(
            f"{section.latents}: class tokens have {stored.class_width} channels, but the network of "
            f"{section.checkpoint} takes {network.config.z_dims[0]}; give prefetch.py the encoder that it was trained "
            "with as --class-encoder."
        )
    wrong = stored.labels[(stored.labels < 0) | (stored.labels >= c.num_classes)]
    if section.use_label and len(wrong):
        raise DataError(
            f"{section.latents}: found the label {int(wrong[0])}, but the network has the classes 0 to "
            f"{c.num_classes - 1}; with use_label every image needs one (prefetch.py without --no-labels)."
        )
    _require_trained_normalisation(section, stored)
    return stored


def _require_trained_normalisation(section: DiffusionSection, stored: StoredLatents) -> None:
    """Compare with what a checkpoint folder says of its training; reference files say nothing."""
    is_folder = Path(section.checkpoint).is_dir()
    trained = read_diffusion_folder(section.checkpoint).model.get("latents") if is_folder else None
    if trained is None:
        return
    ours = stored.normalisation
    for name, value in (("mean", ours.mean), ("std", ours.std)):
        if not torch.allclose(value.flatten(), torch.tensor(trained[name]), rtol=1e-4, atol=1e-5):
            raise DataError(
                f"{section.latents}: {name} in latents_stats.pt is not that of the latents which {section.checkpoint} "
                "was trained on; copy the latents_stats.pt of the training (prefetch.py --latents-stats)."
            )
    if trained["multiplier"] != ours.multiplier:
        raise DataError(
            f"latent_multiplier: found {ours.multiplier:g}, but {section.checkpoint} was trained with "
            f"{trained['multiplier']:g}; set it to that."
        )
