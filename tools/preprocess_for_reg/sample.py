"""Sample latents from a REG SiT, on the CPU, one GPU or many (docs/diffusion.md).

How it is sampled stands in the section `sample` of the run's configuration; `tools/decode` makes images of the result.
"""

from __future__ import annotations

from common.command import run_command
from evaluation.diffusion.command import parse_sampling_arguments, run_sampling, stored_config


def main() -> None:
    arguments = parse_sampling_arguments(__doc__)
    from configs.reg import REGExperiment
    from configs.schema import load_experiment

    config = load_experiment(
        REGExperiment,
        arguments.config,
        arguments.overrides,
        otherwise=lambda: (arguments.checkpoint, stored_config(arguments.checkpoint)),
    )
    from evaluation.diffusion.samplers import REGSampler
    from networks.diffusion.reg_sit import REGSiT

    run_sampling(
        arguments,
        lambda: REGSiT(config.network),
        lambda network: REGSampler(network, config.loss.path_type, config.sample),
    )


if __name__ == "__main__":
    run_command(main)
