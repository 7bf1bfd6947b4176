"""Sample tokens from an autoregressive model, on the CPU, one GPU or many.

How it is sampled stands in the section `sample` of the run's configuration, which the flags override; `tools/decode`
makes images of the result.
"""

from __future__ import annotations

from common.command import run_command
from evaluation.ar.command import parse_sampling_arguments, run_sampling, stored_config


def main() -> None:
    arguments = parse_sampling_arguments(__doc__)
    from configs.gpt_c2i import GPTExperiment
    from configs.schema import load_experiment

    config = load_experiment(
        GPTExperiment,
        arguments.config,
        arguments.overrides,
        otherwise=lambda: (arguments.checkpoint, stored_config(arguments.checkpoint)),
    )
    run_sampling(arguments, config.network, config.sample)


if __name__ == "__main__":
    run_command(main)
