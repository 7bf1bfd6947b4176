"""The system `lightningdit`: trains LightningDiT by flow matching on prefetched latents."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from data.latent_batches import LatentBatch, LightningDiTLatents
from losses.flow_matching import flow_matching_loss
from losses.paths import PATHS
from losses.times import draw_transport_times
from networks.diffusion.lightningdit import LightningDiT
from trainer.systems.diffusion import DiffusionSystem, TrainingDraws

if TYPE_CHECKING:
    from configs.lightningdit import LightningDiTExperiment


class LightningDiTSystem(DiffusionSystem):
    """Network and step of LightningDiT (arXiv:2501.01423)."""

    config: LightningDiTExperiment
    model_type = "lightningdit"
    watched_loss = "loss/mse"

    @staticmethod
    def open_latents(config: LightningDiTExperiment) -> LightningDiTLatents:
        return LightningDiTLatents(config.data)

    @staticmethod
    def build_network(config: LightningDiTExperiment) -> LightningDiT:
        return LightningDiT(config.network)

    @staticmethod
    def draws(config: LightningDiTExperiment) -> TrainingDraws:
        times = partial(draw_transport_times, transport=config.transport)
        return TrainingDraws(times, [config.network.latent_shape()], config.network)

    def trained_module(self) -> nn.Module:
        return _Velocity(self.network)

    def losses(self, batch: LatentBatch) -> dict[str, Tensor]:
        transport, drawn = self.config.transport, self.to_device(batch.drawn)
        point = PATHS[transport.path_type].point(self.to_device(batch.z), drawn["noise_0"], drawn["t"])
        with self.precision():
            output = self.model(point.x, point.t, drawn["y"]).float()
        # A predicted noise or score has no direction in time, so the sign that a velocity gets is taken back.
        loss = flow_matching_loss(output if transport.prediction == "velocity" else -output, point, transport)
        report = {"loss/total": loss.total, "loss/mse": loss.mse.mean()}
        return report if loss.cosine is None else report | {"loss/cosine": loss.cosine.mean()}


class _Velocity(nn.Module):
    """`LightningDiT.velocity` as a forward pass, which is all that data-parallel training follows."""

    def __init__(self, network: LightningDiT):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.network.velocity(x, t, y)
