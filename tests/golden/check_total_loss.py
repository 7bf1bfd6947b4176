"""How the cases of the whole objective are compared: what every term reports, and the gradients of both sides.

A stub stands for the tokenizer: an image P that depends on a matrix W, which takes the place of the last layer before
the latent, and moments KP.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from common.resize import resize_images
from common.value_range import unit_to_signed
from configs.reference import KEYS, TERMS_OF_THE_OTHER_MODE, Key
from losses import LOSSES
from losses.adaptive_weight import adaptive_weight
from losses.interfaces import DiscriminatorInputs, Loss, LossInputs
from losses.lpips import LPIPS
from losses.objective import Objective, Value, details, total
from losses.patchgan import SCALES
from losses.schedule import Moment, blur_sigma
from losses.warmup import DiscriminatorWarmup
from networks.checkpoint.names import discriminator_rows, to_own_name
from networks.config import DiscriminatorConfig
from networks.discriminators.blur import blur_images
from networks.discriminators.discriminators import Discriminators
from networks.equivariance import EquivarianceTransform
from networks.interfaces import Verdict
from networks.latent import DiagonalGaussian
from tests.golden.cases import HERE, Case
from tests.golden.check_discriminators import GRADIENT, filled_discriminators
from tests.golden.check_training import filled_lpips_trunk

NO_VALUE = Value(torch.zeros(()), 0.0)
# What the reference's objective takes where a case says nothing.
DEFAULTS = {
    name.removeprefix("loss_kwargs."): entry.default
    for name, entry in KEYS.items()
    if isinstance(entry, Key) and name.startswith("loss_kwargs.")
} | {"multiscale_block_indices": [], "multiscale_pixel_loss_weights": []}


def check_total_loss(case: Case) -> None:
    """All calls of all stages."""
    for name, facts in case.facts["stages"].items():
        stage = Stage(case, name, facts)
        for number, call in enumerate(facts["calls"]):
            assert call["phase"] in ("D", "G")
            (stage.check_discriminators if call["phase"] == "D" else stage.check_tokenizer)(number, call)


# --- the stub ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stub:
    """The leaves of the stub tokenizer, by the names of the case, and the real images in [0, 1]."""

    leaves: dict[str, Tensor]
    real: Tensor

    @classmethod
    def draw(cls, facts: dict[str, Any], side: int, real_side: int) -> Stub:
        """Drawn in the order and with the factors that the case words, e.g. `P (2,3,So,So)*0.7, W (4,4)/2`."""
        drawn, real = facts["stub_generator"].split("Drawn from one generator in the order ")[1].split("; real images:")
        generator = torch.Generator().manual_seed(facts["seed"])
        leaves = {}
        for name, shape, operation, factor in re.findall(r"(\w+) \(([\w,]+)\)(?:([*/])([\d.]+))?", drawn):
            sizes = [side if size == "So" else int(size) for size in shape.split(",")]
            scale = {"*": float(factor), "/": 1 / float(factor)}[operation] if operation else 1.0
            leaves[name] = torch.randn(sizes, generator=generator) * scale
        batch = int(re.search(r"torch\.rand\((\d+),3,S,S\)", real)[1])
        generator = torch.Generator().manual_seed(facts["seed"] + 1)
        return cls(leaves, torch.rand(batch, 3, real_side, real_side, generator=generator))

    def with_gradients(self) -> Stub:
        names = ("P", "W", "KP")
        return Stub({name: x.clone().requires_grad_(name in names) for name, x in self.leaves.items()}, self.real)

    @property
    def image(self) -> Tensor:
        shift = (self.leaves["W"] @ self.leaves["q"])[:3].view(1, 3, 1, 1)
        return torch.tanh(self.leaves["P"] + 0.1 * shift)

    @property
    def vf_loss(self) -> Tensor:
        return (self.leaves["W"] @ self.leaves["q"] - self.leaves["t"]).square().mean()


class StubVFLoss(Loss):
    """The stub's VF loss in its place in the objective."""

    needs = frozenset({"latent"})
    group = "latent"

    def forward(self, inputs: LossInputs) -> Tensor:
        return inputs.latent.vf_loss


# --- one stage ---------------------------------------------------------------------------------------------------


class Stage:
    """The objective of one stage with its discriminators, and its calls.

    After the first tokenizer call with a PatchGAN the reference drops all reconstruction and latent terms, which is an
    option here.
    """

    def __init__(self, case: Case, name: str, facts: dict[str, Any]):
        self.case, self.name, self.kwargs = case, name, DEFAULTS | facts["loss_kwargs"]
        self.side = facts.get("S_generated", case.facts["S"])
        self.stub = Stub.draw(case.facts, self.side, facts.get("S_real", case.facts["S"]))
        self.transform = _transform(name)
        self.interpolation = re.search(r"\((bilinear|bicubic)\)", case.facts["vfm_name"])[1]
        warmup = DiscriminatorWarmup(self.kwargs["use_stylegan_t_disc_warmup"], self.kwargs["use_patchgan_disc_warmup"])
        self.at = Moment(facts["cur_nimg"], warmup.waiting)
        self.terms = _terms(self.kwargs, self.side)
        self.objective = _build(self.terms, gives_way=False)
        has_patchgan = self.kwargs["patchgan_discriminator_loss_weight"] > 0
        self.discriminators = _discriminators(has_patchgan, self.interpolation)
        self.rows = discriminator_rows(has_patchgan)
        self.sigma = blur_sigma(self.at.nimg, self.kwargs["blur_init_sigma"], self.kwargs["blur_fade_kimg"])

    @property
    def target(self) -> Tensor:
        """The transformed real image, in [0, 1]."""
        return self.transform.apply_to_target(self.stub.real, self.interpolation)

    def judge(self, images: Tensor) -> Verdict:
        """What the discriminators say of images in [-1, 1]."""
        return self.discriminators(blur_images(images, self.sigma))

    def check_discriminators(self, number: int, call: dict[str, Any]) -> None:
        """The discriminators' side."""
        where = f"{self.name}, call {number}"
        inputs = DiscriminatorInputs(fake=self.judge(self.stub.image), real=self.judge(unit_to_signed(self.target)))
        values = self.objective.discriminator_terms(inputs, self.at)
        self._check_report(where, "Loss/D/", call, values)
        parameters = dict(self.discriminators.named_parameters())
        own = {name: parameters[to_own_name(name, self.rows)] for name in call["grad_norms"]}
        self._check_gradients(where, total(values, [inputs.fake.projected]), own, call)

    def check_tokenizer(self, number: int, call: dict[str, Any]) -> None:
        """The tokenizer's side, then what the reference switches off at its end."""
        where = f"{self.name}, call {number}"
        stub = self.stub.with_gradients()
        inputs = self._inputs(stub)
        reconstruction = self.objective.reconstruction_terms(inputs, self.at)
        latent = self.objective.latent_terms(inputs, self.at)
        if "vf" in latent and self.kwargs["use_adaptive_vf_loss"]:
            latent["vf"] = _adapted(latent["vf"], total(reconstruction, [inputs.reconstruction]), stub.leaves["W"])
        values = reconstruction | self.objective.adversarial_terms(inputs, self.at) | latent
        self._check_report(where, "Loss/G/", call, values)
        self._check_gradients(where, total(values, [inputs.reconstruction]), stub.leaves, call)
        self._check_kept_values(where, call, values)
        self.objective = _build(self.terms, gives_way=True)
        self._check_switches(where, call)

    def _inputs(self, stub: Stub) -> LossInputs:
        image, target = stub.image, unit_to_signed(self.target)
        count = int(re.search(r"i=0\.\.(\d+)", self.case.facts["stub_generator"])[1]) + 1
        pyramid = {self.side >> (i + 1): F.avg_pool2d(image, 2 ** (i + 1)) for i in range(count)}
        targets = {side: resize_images(self.target, self.interpolation, size=side) for side in pyramid}
        with torch.no_grad():
            real = self.judge(target) if self.objective.needs("real", self.at) else None
        return LossInputs(
            target=target,
            reconstruction=image,
            pyramid=pyramid,
            pyramid_targets={side: unit_to_signed(small) for side, small in targets.items()},
            latent=SimpleNamespace(posterior=DiagonalGaussian(stub.leaves["KP"]), vf_loss=stub.vf_loss),
            fake=self.judge(image),
            real=real,
        )

    # --- comparing -----------------------------------------------------------------------------------------------

    def _check_report(self, where: str, prefix: str, call: dict[str, Any], values: dict[str, Value]) -> None:
        """Every value that the reference logs, and no other."""
        found = {f"{prefix}{self._reference_name(name)}": value.loss for name, value in values.items()}
        found |= {f"{prefix}{self._reference_name(name)}": value for name, value in details(values).items()}
        found = {name: value for name, value in found.items() if not name.endswith("/accuracy")}
        found[f"{prefix}skipped"] = torch.zeros(())
        assert set(found) == set(call["reported_means"]), where
        for name, expected in call["reported_means"].items():
            self.case.check_value(f"{where}: {name}", found[name].item(), expected)

    def _reference_name(self, name: str) -> str:
        """A term or `<term>/<detail>` under the reference's name of the log."""
        if name in ("stylegan_t", "patchgan"):
            return f"{name}/loss"
        if name == "feature_matching":
            return "patchgan/feature_matching_loss"
        if match := re.fullmatch(r"(stylegan_t|patchgan)/(fake|real)_loss", name):
            return f"{match[1]}/{'gen' if match[2] == 'fake' else 'real'}_loss"
        if match := re.fullmatch(r"patchgan/(\w+)/(fake|real)_(\w+)", name):
            return f"patchgan/{match[2]}/scale{SCALES.index(match[1])}/{match[2]}_{match[3]}"
        if match := re.fullmatch(r"multiscale_pixel/resolution_(\d+)", name):
            return f"multiscale_pixel_loss_block{(self.side // int(match[1])).bit_length() - 2}"
        return name if "/" in name else f"{name}_loss"

    def _check_gradients(self, where: str, loss: Tensor, leaves: dict[str, Tensor], call: dict[str, Any]) -> None:
        expected = call["grad_norms"]
        gradients = torch.autograd.grad(loss, [leaves[name] for name in expected], allow_unused=True)
        for (name, norm), gradient in zip(expected.items(), gradients, strict=True):
            found = 0.0 if gradient is None else gradient.norm().item()
            if norm == 0:
                assert found == 0, f"{where}: gradient of {name}"
            else:
                self.case.check_value(f"{where}: gradient of {name}, relative", found / norm, 1.0, GRADIENT)

    def _check_kept_values(self, where: str, call: dict[str, Any], values: dict[str, Value]) -> None:
        """What the reference keeps for its monitor: 0 where a term is off."""
        for name, expected in call["prev_loss_dict"].items():
            term = re.sub(r"(_gen)?_loss$", "", name)
            assert term in LOSSES, f"{where}: {name} is not compared"
            self.case.check_value(f"{where}: kept {name}", values.get(term, NO_VALUE).loss.item(), expected)

    def _check_switches(self, where: str, call: dict[str, Any]) -> None:
        switches = {
            "stylegan_t_on": ("stylegan_t",),
            "patchgan_on": ("patchgan",),
            "perceptual_on": ("perceptual",),
            "pixel_on": ("l1_pixel", "l2_pixel"),
            "ssim_on": ("ssim",),
            "multiscale_on": ("multiscale_pixel",),
        }
        for name, on in call["flags_after"].items():
            assert any(map(self._is_on, switches[name])) is on, f"{where}: {name}"
        for name, expected in call["weights_after"].items():
            if name == "multiscale_pixel_loss_weights":
                on = self._is_on("multiscale_pixel")
                assert expected == [w * on for w in self.kwargs[name]], f"{where}: {name}"
            else:
                on = self._is_on(name.removesuffix("_loss_weight"))
                assert expected == self.kwargs[name] * on, f"{where}: {name}"

    def _is_on(self, term: str) -> bool:
        """Whether a term counts as soon as its window is open."""
        if term not in self.objective:
            return False
        return self.objective.counts(term, Moment(int(1000 * self.terms[term].start_kimg), self.at.waiting))


def _transform(name: str) -> EquivarianceTransform:
    match = re.search(r"equivariance_scale_([\d.]+)_turn_(\d)", name)
    return EquivarianceTransform(float(match[1]), int(match[2])) if match else EquivarianceTransform()


def _terms(kwargs: dict[str, Any], side: int) -> dict[str, Any]:
    """The enabled terms of the reference's `loss_kwargs`."""
    drafts: dict[str, dict[str, Any]] = {}
    for name, value in kwargs.items():
        entry = KEYS.get(f"loss_kwargs.{name}")
        if isinstance(entry, Key) and entry.own.startswith("losses."):
            _, term, leaf = entry.own.split(".")
            drafts.setdefault(term, {})[leaf] = value
    indices, weights = kwargs["multiscale_block_indices"], kwargs["multiscale_pixel_loss_weights"]
    drafts["multiscale_pixel"]["weights"] = {side >> (i + 1): w for i, w in zip(indices, weights, strict=True)}
    idle = {*TERMS_OF_THE_OTHER_MODE[kwargs["compression_mode"]]}
    if not kwargs["patchgan_discriminator_loss_weight"]:
        idle.add("feature_matching")
    built = {name: LOSSES[name].config(**values) for name, values in drafts.items() if name not in idle}
    return {name: term for name, term in built.items() if term.enabled}


def _build(terms: dict[str, Any], gives_way: bool) -> Objective:
    changes = {"disable_reconstruction_when_patchgan": gives_way}
    terms = {name: term.model_copy(update=changes) if name == "patchgan" else term for name, term in terms.items()}
    with mock.patch("losses.lpips.load_lpips", lambda path: _filled_lpips()):
        objective = Objective(terms)
    if "vf" in objective:
        objective.losses["vf"] = StubVFLoss()
    return objective


def _adapted(vf: Value, reconstruction_loss: Tensor, last_weight: Tensor) -> Value:
    gradients = [
        torch.autograd.grad(loss, last_weight, retain_graph=True)[0] for loss in (reconstruction_loss, vf.loss)
    ]
    return replace(vf, weight=vf.weight * adaptive_weight(*gradients))


@lru_cache(maxsize=1)
def _filled_lpips() -> LPIPS:
    return LPIPS(filled_lpips_trunk(Case(HERE / "training_lpips.json", "training_lpips")))


@lru_cache(maxsize=2)
def _discriminators(has_patchgan: bool, interpolation: str) -> Discriminators:
    config = DiscriminatorConfig(
        use_stylegan_t_discriminator=True, use_patchgan_discriminator=has_patchgan, get_interm_feat=has_patchgan
    )
    return filled_discriminators(config, interpolation)
