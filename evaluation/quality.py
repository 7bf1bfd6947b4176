"""Compare two folders of images: PSNR, SSIM and, with a local VGG16 trunk, LPIPS of each pair, and their means."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.errors import DataError
from common.files import write_text_atomically
from common.similarity import psnr, ssim
from common.value_range import uint8_to_unit, unit_to_signed
from evaluation.images import IMAGE_SUFFIXES, UnreadableImage, read_rgb, resized, to_tensor

DEFAULT_PSNR_CAP = 100.0
_SHOWN_NAMES = 10


@dataclass(frozen=True)
class Pairs:
    """Files of equal names in two folders.

    Args:
        names: paths below both folders, sorted.
        unmatched: paths that only one folder has.
        resize: side to which all images are brought first, by PIL's bicubic filter (published VFMTok: 256); None: they
            are taken as they are.
    """

    ref_dir: Path
    pred_dir: Path
    names: tuple[str, ...]
    unmatched: tuple[str, ...]
    resize: int | None = None


@dataclass(frozen=True)
class PairScore:
    """Scores of one pair: PSNR in dB (infinite if equal), SSIM on [-1, 1], SSIM on [0, 1], LPIPS if computed."""

    name: str
    psnr: float
    ssim: float
    ssim_01: float
    lpips: float | None = None


@dataclass(frozen=True)
class QualitySummary:
    """Means over images.

    Args:
        total: number of pairs.
        psnr: mean of per-image PSNR in dB, each at most `psnr_cap`.
        ssim: mean SSIM on [-1, 1] (the convention of published tokenizer tables).
        ssim_01: mean SSIM on [0, 1] (the usual one).
        lpips: mean LPIPS (VGG16), or None if it was left out.
        capped: how many pairs had a PSNR above the cap.
    """

    total: int
    psnr: float
    ssim: float
    ssim_01: float
    lpips: float | None
    psnr_cap: float
    capped: int


def pair_folders(
    ref_dir: str | Path, pred_dir: str | Path, allow_unmatched: bool = False, resize: int | None = None
) -> Pairs:
    """Pair the images of two folders by identical path, suffix included; sub-folders and case count.

    Args:
        allow_unmatched: leave out images without a partner.
        resize: see `Pairs`.

    Raises: DataError if a folder is missing, if nothing matches, or, unless allowed, if anything is unmatched.
    """
    ref_dir, pred_dir = Path(ref_dir), Path(pred_dir)
    ref, pred = _image_names(ref_dir), _image_names(pred_dir)
    pairs = Pairs(ref_dir, pred_dir, tuple(sorted(ref & pred)), tuple(sorted(ref ^ pred)), resize)
    if not pairs.names:
        raise DataError(
            f"{ref_dir} ({len(ref)} images) and {pred_dir} ({len(pred)} images) have no file name in common; "
            "pairs need identical names, suffix included."
        )
    if pairs.unmatched and not allow_unmatched:
        shown = [f"{name} (only in {ref_dir if name in ref else pred_dir})" for name in pairs.unmatched]
        more = [f"and {len(shown) - _SHOWN_NAMES} more"] if len(shown) > _SHOWN_NAMES else []
        raise DataError(
            f"{len(shown)} images have no partner; complete the folders or pass --allow-unmatched.\n  "
            + "\n  ".join(shown[:_SHOWN_NAMES] + more)
        )
    return pairs


def _image_names(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; expected one that holds images.")
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    }


@torch.inference_mode()
def score_batch(
    reference: Tensor, prediction: Tensor, names: Sequence[str], lpips: nn.Module | None = None
) -> list[PairScore]:
    """Score pairs of 8-bit images. PSNR and SSIM run in float64, so that the size of a batch leaves no trace.

    Args:
        reference, prediction: uint8 [B, 3, H, W].
        lpips: takes (real, generated) in [-1, 1], float32, and gives [B].
    """
    unit = [uint8_to_unit(images).double() for images in (prediction, reference)]
    signed = [unit_to_signed(images) for images in unit]
    columns = [psnr(*signed, data_range=2), ssim(*signed, data_range=2), ssim(*unit, data_range=1)]
    if lpips is not None:
        generated, real = (images.float() for images in signed)
        columns.append(lpips(real, generated).flatten())
    return [PairScore(name, *row) for name, *row in zip(names, *(column.tolist() for column in columns))]


def score_pairs(
    pairs: Pairs,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    lpips: nn.Module | None = None,
    show_progress: bool = False,
) -> list[PairScore]:
    """Score all pairs in order of name. Images of different pairs may differ in size, those of one pair may not.

    Raises: DataError naming an image that cannot be read, or a pair of different sizes.
    """
    scores: list[PairScore] = []
    with (
        ThreadPoolExecutor(max(workers, 1)) as pool,
        tqdm(total=len(pairs.names), unit="pair", disable=not show_progress) as progress,
    ):
        for start in range(0, len(pairs.names), batch_size):
            names = pairs.names[start : start + batch_size]
            loaded = pool.map(lambda name: _read_pair(pairs, name), names)
            for same_size in _runs_of_equal_size(zip(names, loaded)):
                reference, prediction = (
                    torch.stack([to_tensor(pair[side]) for _, pair in same_size]).to(device) for side in (0, 1)
                )
                scores += score_batch(reference, prediction, [name for name, _ in same_size], lpips)
            progress.update(len(names))
    return scores


_NamedPair = tuple[str, tuple[np.ndarray, np.ndarray]]


def _runs_of_equal_size(pairs: Iterable[_NamedPair]) -> Iterator[list[_NamedPair]]:
    for _, run in groupby(pairs, key=lambda pair: pair[1][0].shape):
        yield list(run)


def _read_pair(pairs: Pairs, name: str) -> tuple[np.ndarray, np.ndarray]:
    reference, prediction = (read_pixels(folder / name, pairs.resize) for folder in (pairs.ref_dir, pairs.pred_dir))
    if reference.shape != prediction.shape:
        sizes = [f"{image.shape[1]} x {image.shape[0]}" for image in (reference, prediction)]
        raise DataError(
            f"{name}: found {sizes[0]} pixels in {pairs.ref_dir} and {sizes[1]} in {pairs.pred_dir}, expected equal "
            "sizes; compare with the crops that the reconstruction wrote (its inputs/ folder)."
        )
    return reference, prediction


def read_pixels(path: Path, resize: int | None = None) -> np.ndarray:
    """An image file as uint8 [H, W, 3]. Raises DataError that names a file that cannot be read.

    Args:
        resize: see `Pairs`.
    """
    try:
        return np.asarray(resized(read_rgb(path), resize))
    except UnreadableImage as error:
        raise DataError(f"{path}: not readable as an image ({error}).") from error


def summarise(scores: Sequence[PairScore], psnr_cap: float = DEFAULT_PSNR_CAP) -> QualitySummary:
    """Plain means over images; a PSNR above the cap (two equal images have an infinite one) counts as the cap."""

    def mean(values: Iterable[float]) -> float:
        return math.fsum(values) / len(scores)

    has_lpips = scores[0].lpips is not None
    return QualitySummary(
        total=len(scores),
        psnr=mean(min(score.psnr, psnr_cap) for score in scores),
        ssim=mean(score.ssim for score in scores),
        ssim_01=mean(score.ssim_01 for score in scores),
        lpips=mean(score.lpips for score in scores) if has_lpips else None,
        psnr_cap=psnr_cap,
        capped=sum(score.psnr > psnr_cap for score in scores),
    )


def as_record(scores: PairScore | QualitySummary) -> dict[str, Any]:
    """Scores for a JSON or CSV file, rounded to 6 digits: below that, the order of summation shows."""
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(scores).items()}


def write_csv(path: str | Path, scores: Sequence[PairScore]) -> None:
    """One line per pair; an infinite PSNR is written as `inf`."""
    table = io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in fields(PairScore)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(as_record, scores))
    write_text_atomically(path, table.getvalue())
