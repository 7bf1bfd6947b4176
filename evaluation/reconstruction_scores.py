"""All metrics of reconstructions against their originals, and the protocol that decides them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import distributed
from common.errors import UserError
from common.files import sha256_of
from evaluation.extractors import load_extractor
from evaluation.extractors.base import Extractor
from evaluation.extractors.inception import find_inception
from evaluation.fidelity import SetScores, score_sets
from evaluation.generation import Computing
from evaluation.quality import DEFAULT_PSNR_CAP, Pairs, PairScore, QualitySummary, as_record, score_pairs, summarise

if TYPE_CHECKING:
    from losses.lpips import LPIPS

LPIPS_LEFT_OUT = "left out: no VGG16 trunk found (--lpips-vgg16 vgg16-397923af.pth)"
PAIR_PROTOCOL = {
    "psnr": "mean of per-image PSNR in dB over all channels and pixels of 8-bit images",
    "ssim": "Gaussian window, sigma 1.5, 11 x 11, images in [-1, 1], whole map (reflected border)",
    "ssim_01": "the same on images in [0, 1]",
}


@dataclass(frozen=True)
class Metrics:
    """What is computed, and how.

    Args:
        computing: how, which changes no number beyond the order of additions.
        lpips: LPIPS, or None to leave it out.
        extractor: features for the metrics of whole sets, or None to leave these out.
        psnr_cap: most dB that one pair counts.
    """

    computing: Computing
    lpips: LPIPS | None = None
    extractor: Extractor | None = None
    psnr_cap: float = DEFAULT_PSNR_CAP


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a set of reconstructions.

    Args:
        scores: of each pair, in order of name.
        summary: their means.
        lpips_weights: name and hash of LPIPS's trunk, or None.
        set_scores: rFID and its relatives, or None.
        unmatched: images without partner, which were left out.
        resize: side to which all images were brought first.
    """

    scores: list[PairScore]
    summary: QualitySummary
    lpips_weights: str | None
    set_scores: SetScores | None
    unmatched: int
    resize: int | None = None

    def metrics(self) -> dict[str, float | None]:
        """All means by name, rounded to 6 digits; LPIPS is None if it was left out."""
        pairs = {name: as_record(self.summary)[name] for name in ("psnr", "ssim", "ssim_01", "lpips")}
        return pairs | ({} if self.set_scores is None else self.set_scores.values)

    def counts(self) -> dict[str, float]:
        """Of pairs, of images without partner, and of pairs whose PSNR counts as the cap."""
        summary = self.summary
        return {
            "total": summary.total,
            "unmatched": self.unmatched,
            "psnr_cap": summary.psnr_cap,
            "capped": summary.capped,
        }

    def protocol(self) -> dict[str, Any]:
        """What each number is, in words and settings."""
        lpips = LPIPS_LEFT_OUT
        if self.lpips_weights is not None:
            lpips = f"VGG16 trunk ({self.lpips_weights}), version 0.1 heads, images in [-1, 1]"
        sets = {} if self.set_scores is None else {"sets": self.set_scores.protocol}
        sizes = "as they are"
        if self.resize is not None:
            sizes = f"brought to {self.resize} x {self.resize} by PIL's bicubic filter"
        return PAIR_PROTOCOL | {"sizes": sizes, "lpips": lpips} | sets


def evaluate_pairs(pairs: Pairs, metrics: Metrics) -> Evaluation:
    """Score all pairs, and with an extractor both sets; the ranks share the work, and all get the result.

    Raises: UserError that names an image that cannot be read or does not fit; on all ranks if one of them meets it.
    """
    computing = metrics.computing
    own, error = [], None
    share = replace(pairs, names=pairs.names[distributed.rank() :: distributed.world_size()])
    try:
        own = score_pairs(
            share,
            batch_size=computing.batch_size,
            workers=computing.workers,
            device=computing.device,
            lpips=metrics.lpips,
            show_progress=computing.show_progress,
        )
    except UserError as met:
        error = met
    distributed.raise_together(error)
    scores = [score for part in distributed.all_gather_objects(own) for score in part]
    scores.sort(key=lambda score: score.name)
    set_scores = None
    if metrics.extractor is not None:
        set_scores = score_sets(pairs, metrics.extractor, computing)
    trunk = None if metrics.lpips is None else Path(metrics.lpips.where)
    lpips_weights = None if trunk is None else f"{trunk.name}, SHA-256 {sha256_of(trunk)}"
    summary = summarise(scores, metrics.psnr_cap)
    return Evaluation(scores, summary, lpips_weights, set_scores, len(pairs.unmatched), pairs.resize)


def choose_extractor(choice: str, inception_weights: str | None = None) -> Extractor | None:
    """The extractor that a user chose.

    Args:
        choice: a name of `EXTRACTORS`; "auto": Inception where its weights are found, else EfficientNet-Lite0, whose
            weights come with the requirements; "none".
        inception_weights: Inception's weights file; None: looked for in the torch hub cache.
    Raises: UserError if Inception is asked for, or its file named, and the file is not there.
    """
    if choice == "none":
        return None
    if choice == "auto":
        choice = "inception"
        if inception_weights is None:
            try:
                find_inception(None)
            except UserError:
                choice = "efficientnet_lite0"
    return load_extractor(choice, inception_weights if choice == "inception" else None)


def choose_lpips(vgg16_path: str | None = None) -> LPIPS | None:
    """LPIPS on the given trunk, else on the one in the torch hub cache, else None.

    Raises: UserError if a trunk is named and is not there, or is not VGG16's.
    """
    from losses.lpips import find_trunk, load_lpips

    if vgg16_path is None:
        try:
            find_trunk(None)
        except UserError:
            return None
    return load_lpips(vgg16_path)
