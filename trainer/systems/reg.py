"""The system `reg`: trains SiT with REG's entangled class token on prefetched latents."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from common.errors import CheckpointError
from data.latent_batches import LatentBatch, REGLatents
from losses.reg import REG_PATHS, reg_loss
from losses.times import draw_reg_times
from networks.diffusion.reg_sit import REGSiT
from networks.diffusion.target_features import TargetEncoders, TargetFeatures, load_target_encoders, require_fit
from networks.fingerprint import weights_fingerprint
from trainer.systems.diffusion import DiffusionSystem, TrainingDraws

if TYPE_CHECKING:
    from configs.reg import REGExperiment


class REGSystem(DiffusionSystem):
    """Network, target encoders and step of REG (arXiv:2507.01467).

    Args:
        config, device, latents: as of `DiffusionSystem`; where the latents come with tokens of the target encoders,
            these are not loaded.
        targets: the target encoders; None: those that the configuration names.

    Raises: UserError if a target encoder cannot be loaded, or does not fit the network.
    """

    config: REGExperiment
    model_type = "reg"
    watched_loss = "loss/denoise"

    def __init__(
        self,
        config: REGExperiment,
        device: torch.device,
        latents: REGLatents,
        targets: TargetEncoders | None = None,
    ):
        side, names = config.network.tokens_per_side(), config.target.vfm_names
        self.targets: TargetEncoders | None = None
        if latents.tokens is None:
            self.targets = (targets or load_target_encoders(names, side)).to(device)
            widths, sha256 = self.targets.widths, weights_fingerprint(self.targets.state_dict())
        else:
            latents.tokens.require_tokens(1 + side**2)
            widths, sha256 = latents.tokens.widths, latents.tokens.encoders["sha256"]
        require_fit(config.network.z_dims, widths)
        self.targets_sha256 = sha256
        super().__init__(config, device, latents)

    @staticmethod
    def open_latents(config: REGExperiment) -> REGLatents:
        return REGLatents(config.data)

    @staticmethod
    def build_network(config: REGExperiment) -> REGSiT:
        return REGSiT(config.network)

    @staticmethod
    def draws(config: REGExperiment) -> TrainingDraws:
        """The second noise is that of the class token."""
        shapes = [config.network.latent_shape(), (config.network.z_dims[0],)]
        return TrainingDraws(partial(draw_reg_times, config=config.loss), shapes, config.network)

    def losses(self, batch: LatentBatch) -> dict[str, Tensor]:
        features = self._target_features(batch)
        drawn, path = self.to_device(batch.drawn), REG_PATHS[self.config.loss.path_type]
        point = path.point(self.to_device(batch.z), drawn["noise_0"], drawn["t"])
        class_point = path.point(features.class_token, drawn["noise_1"], drawn["t"])
        with self.precision():
            output = self.model(point.x, point.t, drawn["y"], class_point.x)
        loss = reg_loss(
            output.latent, output.class_token, output.projections, point, class_point, features.tokens
        )  # in fp32, whatever the network's precision
        return {
            "loss/total": loss.total(self.config.loss),
            "loss/denoise": loss.denoise.mean(),
            "loss/cls": loss.cls.mean(),
            "loss/proj": loss.proj,
        }

    def _target_features(self, batch: LatentBatch) -> TargetFeatures:
        if self.targets is None:
            return TargetFeatures([self.to_device(tokens) for tokens in batch.tokens])
        return self.targets(self.to_device(batch.images))

    def facts(self) -> dict[str, Any]:
        return {"target_encoders": {"vfm_names": self.config.target.vfm_names, "sha256": self.targets_sha256}}

    def require_same_frozen_parts(self, manifest: Mapping[str, Any], where: str) -> None:
        if manifest["target_encoders"]["sha256"] != self.targets_sha256:
            raise CheckpointError(
                f"{where}: this run was started with other target encoders than those that target.vfm_names gives now; "
                "point it to the same weights."
            )
