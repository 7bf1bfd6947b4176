"""Sample latents from a LightningDiT, on the CPU, one GPU or many (docs/diffusion.md).

How it is sampled stands in the section `sample` of the run's configuration; `tools/decode` makes images of the result.
"""

from __future__ import annotations

from common.command import run_command
from evaluation.diffusion.command import parse_sampling_arguments, run_sampling, stored_config


def main() -> None:
    arguments = parse_sampling_arguments(__doc__)
    from configs.lightningdit import LightningDiTExperiment
    from configs.schema import load_experiment

    config = load_experiment(
        LightningDiTExperiment,
        arguments.config,
        arguments.overrides,
        otherwise=lambda: (arguments.checkpoint, stored_config(arguments.checkpoint)),
    )
    from evaluation.diffusion.samplers import LightningDiTSampler
    from networks.diffusion.lightningdit import LightningDiT

    run_sampling(
        arguments,
        lambda: LightningDiT(config.network),
        lambda network: LightningDiTSampler(network, config.transport, config.sample),
        multiplier=config.data.latent_multiplier,
    )


if __name__ == "__main__":
    run_command(main)
