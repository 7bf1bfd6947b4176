"""How the case of VFMTok's losses and learning rate is compared."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.config import TermConfig, VFMTokGANTermConfig
from losses.interfaces import DiscriminatorInputs, LossInputs
from losses.objective import Objective, total
from losses.schedule import Moment
from losses.semantic import SemanticLoss
from losses.vfmtok_gan import VFMTokGANLoss
from networks.interfaces import Verdict
from tests.golden.cases import Case
from trainer.config import AdamConfig
from trainer.optimizer import learning_rate

INPUTS = {"logits_fake", "logits_real", "sem", "target", "x", "y"}
BATCH = 128  # the schedule does not depend on it


def check_vfmtok_losses(case: Case) -> None:
    """Every stored value, and the rate of every step."""
    t = case.tensors
    reconstruction = LossInputs(target=t["x"], reconstruction=t["y"])
    semantic = LossInputs(t["x"], t["y"], semantic=t["sem"], semantic_target=t["target"])
    found = {
        "sim": SemanticLoss(TermConfig(weight=1.0))(semantic),
        "rec_l1": _pixels(reconstruction, {"l1_pixel": 1.0, "l2_pixel": 1.0}),
        "rec_l2": _pixels(reconstruction, {"l2_pixel": 2.0}),
        "d_hinge": _discriminator("hinge", t),
        "d_vanilla": _discriminator("vanilla", t),
        "g_hinge": _generator("hinge", t),
        "g_softplus": _generator("softplus_g_loss", t),
        "lr": _rates(case),
        # The reference's non-saturating losses swap input and target of the cross-entropy, so its discriminator learns
        # nothing of reconstructions. Nothing of the product is compared with these two.
        "d_non_saturating": (_swapped_entropy(t["logits_real"], 1.0) + _swapped_entropy(t["logits_fake"], 0.0)) / 2,
        "g_non_saturating": _swapped_entropy(t["logits_fake"], 1.0),
    }
    for name in t:
        if name not in INPUTS:
            assert name in found, f"{case.name}: the stored tensor {name!r} has no counterpart"
            scale = t[name].max() if name == "lr" else 1  # else the tolerance would be as large as a rate
            case.check(name, found[name] / scale, t[name] / scale)


def _pixels(inputs: LossInputs, weights: dict[str, float]) -> Tensor:
    """The pixel terms of a configuration, composed."""
    objective = Objective({name: TermConfig(weight=weight) for name, weight in weights.items()})
    return total(objective.reconstruction_terms(inputs, Moment(0)), touching=[inputs.reconstruction])


def _discriminator(form: str, t: dict[str, Tensor]) -> Tensor:
    loss = VFMTokGANLoss(VFMTokGANTermConfig(weight=1.0, disc_loss=form))
    return loss.discriminator_loss(DiscriminatorInputs(Verdict(t["logits_fake"]), Verdict(t["logits_real"])))


def _generator(form: str, t: dict[str, Tensor]) -> Tensor:
    loss = VFMTokGANLoss(VFMTokGANTermConfig(weight=1.0, gen_loss=form))
    return loss(LossInputs(t["x"], t["y"], fake=Verdict(t["logits_fake"])))


def _swapped_entropy(logits: Tensor, target: float) -> Tensor:
    """Cross-entropy with the target as the logit and the logits as the target."""
    swapped = torch.full_like(logits, target)
    return F.binary_cross_entropy_with_logits(swapped, logits)


def _rates(case: Case) -> Tensor:
    """The rate before training, then that of each step, by the numbers in the case's description."""
    pattern = r"(\S+) \+ k\*\((\S+) - \S+\)/(\d+) for k < \d+"
    start, lr, steps = re.search(pattern, case.facts["lr"]).groups()
    config = AdamConfig(lr=float(lr), warmup_kimg=int(steps) * BATCH / 1000, warmup_init_lr=float(start))
    last = len(case.tensors["lr"]) - 1
    rates = [learning_rate(config, step * BATCH, last * BATCH, BATCH) for step in range(last)]
    return torch.tensor([config.warmup_init_lr, *rates], dtype=torch.float64)
