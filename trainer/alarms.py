"""Alarms for a training that goes on but no longer learns."""

from __future__ import annotations

from collections.abc import Mapping

NO_GRADIENT = 1e-12
COLLAPSED_KL = 1e-2  # nats per image, summed over the latent
PINNED_ACCURACY = 0.999


def silent_deaths(line: Mapping[str, float]) -> dict[str, str]:
    """What a log line tells of a training that died without an error, by the name of the value.

    A gradient norm at 0, a posterior that has become the prior, a discriminator that is always right.
    """
    found = {}
    for name, value in line.items():
        if name.startswith("gradient_norm/") and value < NO_GRADIENT:
            found[name] = f"{value:g}: nothing is learnt any more"
        if name == "loss/kl" and value < COLLAPSED_KL:
            found[name] = f"{value:g}: the posterior has collapsed to the prior, the latent carries nothing"
        if name.startswith("discriminator/") and name.endswith("/accuracy") and value > PINNED_ACCURACY:
            found[name] = f"{value:g}: the discriminator is always right, its gradient teaches nothing"
    return found
