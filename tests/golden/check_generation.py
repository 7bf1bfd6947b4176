"""How the cases of generation metrics are compared."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from evaluation.fidelity import moments_of
from evaluation.frechet import FeatureMoments, frechet_distance
from evaluation.inception_score import InceptionScore
from evaluation.kernel_distance import kernel_distance
from evaluation.precision_recall import precision_recall, squared_radii
from evaluation.reference_batch import stored_moments
from tests.golden.cases import Case

PR_HALF_TOLERANCE = 0.02  # what the cases say in words


def score_of(logits: Tensor, split_size: int) -> float:
    score = InceptionScore(split_size)
    score.update(logits)
    return score.value()


def score_of_splits(logits: Tensor, splits: int) -> float:
    """As torch-fidelity splits: by number, not by size."""
    edges = [i * len(logits) // splits for i in range(splits + 1)]
    return sum(score_of(logits[a:b], len(logits)) for a, b in pairwise(edges)) / splits


def stated(case: Case, pattern: str) -> int:
    """A number that a case gives in the words of its notes."""
    match = re.search(pattern, " ".join(str(note) for note in case.facts["notes"].values()))
    assert match, f"{case.name}: its notes do not say {pattern}"
    return int(match[1])


def check_generation_metrics(case: Case) -> None:
    """Every stored number and tensor of the generation metrics."""
    tensors, tolerance = case.tensors, case.facts["tolerance"]
    reference, sample, pr_reference = tensors["ref_pool"], tensors["sample_pool"], tensors["pr_ref_pool"]
    logits = sample @ tensors["softmax_weight"]
    split_size, splits = int(case.facts["notes"]["split_size"]), stated(case, r"with (\d+) splits")
    neighbours, rows = stated(case, r"k=(\d+)"), stated(case, r"first (\d+) rows of ref and sample")
    subsets, subset_size = stated(case, r"kid_subsets (\d+)"), stated(case, r"kid_subset_size (\d+)")
    pr, pr_half = (precision_recall(pr_reference, sample, neighbours, half) for half in (False, True))
    kid = kernel_distance(sample, reference, subsets, subset_size, stated(case, r"rng_seed (\d+)"))
    shuffled = logits[np.random.RandomState(stated(case, r"shuffle seed (\d+)")).permutation(len(logits))]
    ours, theirs = moments_of(reference), moments_of(sample)
    fid = frechet_distance(ours, theirs)
    few = frechet_distance(*(moments_of(features[:rows]) for features in (reference, sample)))
    population = [
        FeatureMoments(moments.mean, moments.covariance * (len(features) - 1) / len(features))
        for moments, features in ((ours, reference), (theirs, sample))
    ]
    score = score_of(logits, split_size)
    frechet_limit, score_limit = tolerance["fid,sfid (relative)"], tolerance["inception_score (relative)"]
    exact = tolerance["precision/recall"]
    found = {
        "fid": (fid, frechet_limit),
        "fid_torch_fidelity": (fid, frechet_limit),
        "fid_population_cov": (frechet_distance(*population), frechet_limit),
        "fid_rank_deficient": (few, tolerance["fid_rank_deficient (relative)"]),
        "fid_rank_deficient_eigenvalue_form": (few, frechet_limit),
        "sfid": (
            frechet_distance(moments_of(tensors["ref_spatial"]), moments_of(tensors["sample_spatial"])),
            frechet_limit,
        ),
        "inception_score": (score, score_limit),
        "inception_score_single_split": (score_of(logits, len(logits)), score_limit),
        "inception_score_torch_fidelity_no_shuffle": (score_of_splits(logits, splits), score_limit),
        "inception_score_torch_fidelity_default_shuffle": (score_of_splits(shuffled, splits), score_limit),
        "precision": (pr.precision, exact),
        "recall": (pr.recall, exact),
        "precision_fp16": (pr_half.precision, PR_HALF_TOLERANCE),
        "recall_fp16": (pr_half.recall, PR_HALF_TOLERANCE),
        "torch_fidelity_prc_input1_generated": {
            "precision": (pr.precision, 1e-6),
            "recall": (pr.recall, 1e-6),
            "f_score": (2 * pr.precision * pr.recall / max(1e-5, pr.precision + pr.recall), 1e-6),
        },
    }
    expected = dict(case.facts["expected"])
    stored = stored_moments(ours)
    assert str(stored.mean.dtype) == expected.pop("mu_dtype")
    their_kid = expected.pop("kid_torch_fidelity")
    our_kid = {"kernel_inception_distance_mean": kid.mean, "kernel_inception_distance_std": kid.std}
    assert our_kid.keys() == their_kid.keys()
    for name, value in our_kid.items():
        case.check_value(name, value, their_kid[name])
    check_relative(case, found, expected)
    partial = case.facts["partial_split_case"]
    part = {"inception_score": (score_of(logits[: partial["n"]], partial["split_size"]), score_limit)}
    check_relative(case, part, {"inception_score": partial["inception_score"]})
    case.check("ref_mu", torch.from_numpy(stored.mean))
    case.check("ref_sigma", torch.from_numpy(stored.covariance))
    case.check("pr_ref_radii_sq", squared_radii(pr_reference, neighbours)[:, None])
    case.check("pr_sample_radii_sq", squared_radii(sample, neighbours)[:, None])
    inputs = {"ref_pool", "sample_pool", "pr_ref_pool", "ref_spatial", "sample_spatial", "softmax_weight"}
    assert tensors.keys() - inputs == case.checked, f"not compared: {tensors.keys() - inputs - case.checked}"


def check_relative(case: Case, found: dict, expected: dict, prefix: str = "") -> None:
    """Compare every expected number; `found` gives each with its relative tolerance."""
    assert found.keys() == expected.keys(), f"{prefix}: {sorted(found.keys() ^ expected.keys())}"
    for name, reference in expected.items():
        if isinstance(reference, dict):
            check_relative(case, found[name], reference, f"{prefix}{name}.")
            continue
        value, tolerance = found[name]
        assert abs(value - reference) <= tolerance * abs(reference), f"{prefix}{name}: {value} instead of {reference}"
        case.compared += 1
