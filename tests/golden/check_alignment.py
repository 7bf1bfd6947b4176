"""How the cases of the alignment analysis are compared."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from common.registry import import_object
from common.resize import resize_images
from common.value_range import uint8_to_unit
from data.augment import adm_crop
from evaluation.alignment.cka import cka_terms
from evaluation.alignment.cknna import cknna_terms
from evaluation.alignment.features import FeatureSet
from evaluation.alignment.metrics import METRICS, MetricOptions
from evaluation.alignment.preparation import clip_threshold, prepare
from evaluation.alignment.scores import Scoring, score_matrix
from evaluation.alignment.se_cknna import Aggregation, SeScores, score_conditions
from evaluation.alignment.spaces import FeatureSpace
from evaluation.alignment.transforms import ImageTransform, add_noise, apply_transform, draw_transform
from evaluation.images import torchvision_crop
from networks.encoders.base import VisionEncoder
from tests.golden.cases import Case

SCORE, TERMS, CLIP = 1e-5, 1e-4, 1e-6  # the last: of a threshold, which is a value of the matrix or a mean of some


def near(case: Case, what: str, found: float, stored: float, limit: float = SCORE) -> None:
    """|difference| <= limit, as these cases state it."""
    assert abs(found - stored) <= limit, f"{what}: found {found!r}, expected {stored!r}"
    case.compared += 1


def check_cknna(case: Case) -> None:
    """Preparation, CKNNA in every variant, its terms and the sibling metrics."""
    for name, expected in case.facts["cases"].items():
        raw = {side: case.tensors[f"{name}.{side}"] for side in "AB"}
        assert [expected["n"], *expected["dims"]] == [len(raw["A"]), raw["A"].shape[1], raw["B"].shape[1]]
        known = {"n", "dims", "q_value_exact", "q_value_inexact", "processed", "k10_pieces", *CKNNA_OF}
        assert expected.keys() <= known, f"{name}: not compared: {expected.keys() - known}"
        for side, features in raw.items():
            for kind, clip in (("exact", "matrix"), ("inexact", "rows")):
                stored = expected[f"q_value_{kind}"][side]
                near(case, f"{name}: {clip}", clip_threshold(features, clip).item(), stored, CLIP * stored)
            case.check(f"{name}.{side}_processed", prepare(features))
        for key, prepared in CKNNA_OF.items():
            a, b = (FeatureSpace(prepared(features)) for features in raw.values())
            for k, stored in expected[key].items():
                near(case, f"{name}: {key} {k}", cknna_terms(a, b, int(k)).score(1e-6), stored)
        a, b = (FeatureSpace(prepare(features)) for features in raw.values())
        check_scores(case, name, a, b, expected["processed"])
        check_terms(case, name, a, b, expected["k10_pieces"])
    assert case.checked | {key for key in case.tensors if key.rpartition(".")[2] in "AB"} == set(case.tensors)


CKNNA_OF = {
    "inexact_clip_cknna": lambda features: prepare(features, "rows"),
    "no_clip_cknna": lambda features: prepare(features, "none"),
    "raw_no_normalise_cknna": lambda features: features,
    "processed_float64_cknna": lambda features: prepare(features).double(),
}


def check_scores(case: Case, name: str, a: FeatureSpace, b: FeatureSpace, expected: dict) -> None:
    """Every stored metric of prepared features; values that depend on k are mappings."""
    for key, stored in expected.items():
        if key.startswith("cka_"):
            kernel = key.split("_")[1]
            assert key in (f"cka_{kernel}{'_sigma1' * (kernel == 'rbf')}_{kind}" for kind in ("biased", "unbiased"))
            found = cka_terms(a, b, kernel, unbiased=key.endswith("_unbiased")).score(1e-6)
            near(case, f"{name}: {key}", found, stored)
            continue
        metric = key.removesuffix("_swapped").removesuffix("_self_A")
        first, second = {"cknna_swapped": (b, a), "cknna_self_A": (a, a)}.get(key, (a, b))
        for k, value in stored.items():
            score = import_object(METRICS[metric].target)(first, second, MetricOptions(int(k), 1e-6))
            near(case, f"{name}: {key} {k}", score, value)


def check_terms(case: Case, name: str, a: FeatureSpace, b: FeatureSpace, expected: dict) -> None:
    """What CKNNA with k = 10 and linear CKA are made of."""
    terms = cknna_terms(a, b, 10)
    found = {
        "shared_neighbour_pairs": terms.shared,
        "hsic_kl": terms.kl,
        "hsic_kk": terms.kk,
        "hsic_ll": terms.ll,
        "full_hsic_unbiased_kl": cka_terms(a, b, "linear").kl,
        "full_hsic_biased_kl": cka_terms(a, b, "linear", unbiased=False).kl,
    }
    assert found.keys() == expected.keys()
    for key, stored in expected.items():
        near(case, f"{name}: {key}", found[key], stored, 0 if key == "shared_neighbour_pairs" else TERMS * abs(stored))


def check_se_cknna(case: Case) -> None:
    """CKNNA per condition, SE-CKNNA with and without the clean condition, the clean reference, the matrix."""
    facts, limit = case.facts, case.facts["tolerance"]
    sets = {name: FeatureSet(x, tuple(f"{i:06d}" for i in range(len(x)))) for name, x in case.tensors.items()}
    transformed = tuple(name for name in facts["conditions"] if name != "clean")
    scoring = Scoring(k=facts["topk"], eps=1e-6)
    models = [{name: sets[f"{model}.{name}"] for name in facts["conditions"]} for model in ("tokenizer", "vfm")]

    def scored(**how: Any) -> SeScores:
        return score_conditions([models[0]], [models[1]], Aggregation(transformed, **how), scoring)

    same, including, fixed = scored(), scored(include_clean=True), scored(reference="clean")
    for key, found in (("cknna_per_condition", same), ("cknna_vs_clean_reference", fixed)):
        assert found.by_condition.keys() == facts[key].keys()
        for condition, stored in facts[key].items():
            near(case, f"{key}: {condition}", found.by_condition[condition].values.item(), stored, limit)
    near(case, "se_cknna", same.mean.values.item(), facts["se_cknna"], limit)
    near(case, "se_cknna_including_clean", including.mean.values.item(), facts["se_cknna_including_clean"], limit)
    near(case, "relative_change", same.relative_change.item(), facts["relative_change_vs_clean"], limit)
    check_matrix(case, sets, scoring)
    used = {f"{model}.{name}" for model in ("tokenizer", "vfm") for name in facts["conditions"]}
    used |= {f"diffusion.{name}" for name in facts["cross_layer"]["rows"]}
    used |= {f"reference.{name}" for name in facts["cross_layer"]["cols"]}
    assert used == set(case.tensors)


def check_matrix(case: Case, sets: dict[str, FeatureSet], scoring: Scoring) -> None:
    """The scores of all layers of a diffusion model with those of a reference."""
    layers = case.facts["cross_layer"]
    rows = [sets[f"diffusion.{name}"] for name in layers["rows"]]
    columns = [sets[f"reference.{name}"] for name in layers["cols"]]
    found = score_matrix(rows, columns, scoring).values
    for row, values in zip(found.tolist(), layers["matrix"], strict=True):
        for value, stored in zip(row, values, strict=True):
            near(case, "cross_layer", value, stored, case.facts["tolerance"])


class PlainEncoder(VisionEncoder):
    """An encoder that neither scales nor normalises by itself, and resizes without antialiasing."""

    antialias_prescale = False
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def check_transforms(case: Case) -> None:
    """Drawn transformations, noise, rotations, crops and scales."""
    for key, stored in case.facts.items():
        if key.startswith("equivariance_params_"):
            seed = int(key.rpartition("_seed")[2])
            first = int(key.split("idx")[1].split("_")[0])
            drawn = [draw_transform(first + index, seed) for index in range(len(stored))]
            assert [{"rotation": t.rotation, "scale": t.scale} for t in drawn] == stored
            case.compared += len(stored)
    checks = {
        "noise": check_noise,
        "rot": check_rotation,
        "adm_crop": check_adm_crop,
        "recon_preprocess": check_torchvision_crop,
        "eq_scale": check_scale,
    }
    for name in case.tensors:
        kind = name.split(".")[0]
        if ".in" not in name.removeprefix(kind):
            checks[kind](case, name)
            case.compared += 1


def check_noise(case: Case, name: str) -> None:
    level, index = name.removeprefix("noise.").rsplit(".idx", 1)
    found = add_noise(case.tensors["noise.in"].numpy(), float(level), int(index), case.facts["seed"])
    assert torch.equal(torch.from_numpy(found), case.tensors[name])


def check_rotation(case: Case, name: str) -> None:
    images = case.tensors["rot.in"].permute(2, 0, 1)[None]
    found = apply_transform(images, ImageTransform(rotation=int(name.split(".")[1])))
    assert torch.equal(found[0].permute(1, 2, 0), case.tensors[name])


def check_adm_crop(case: Case, name: str) -> None:
    size, side = name.removeprefix("adm_crop.out.").split("_to_")
    image = Image.fromarray(case.tensors[f"adm_crop.in.{size}"].numpy())
    assert largest(torch.from_numpy(adm_crop(image, int(side)).copy()), case.tensors[name]) <= 1


def check_torchvision_crop(case: Case, name: str) -> None:
    size, side = name.removeprefix("recon_preprocess.").split("_to_")
    image = Image.fromarray(case.tensors[f"adm_crop.in.{size}"].numpy())
    found = uint8_to_unit(torch.from_numpy(torchvision_crop(image, int(side)).copy()).permute(2, 0, 1))
    assert largest(found, case.tensors[name]) <= 1 / 255 + 1e-6


def check_scale(case: Case, name: str) -> None:
    """With antialiasing as images are transformed; without as some encoders scale their input."""
    rule, scale = name.removeprefix("eq_scale.").split(".", 1)
    images = case.tensors["eq_scale.in"]
    found = {
        "bilinear_antialias": lambda: resize_images(images, "bilinear", scale_factor=float(scale)),
        "bilinear_plain": lambda: PlainEncoder(nn.Identity(), [], 1.0).preprocess(images, float(scale)),
    }[rule]()
    assert largest(found, case.tensors[name]) <= case.facts["tolerance"]["eq_scale"]


def largest(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference of two tensors of one shape."""
    assert found.shape == expected.shape
    return (found.double() - expected.double()).abs().max().item()
