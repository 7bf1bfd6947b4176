"""The quick start's report: one self-contained HTML page and one JSON file of results.

reconstructed crops + photographs' index + training log + two model configurations -> numbers -> page
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import DataError
from evaluation.baselines import BASELINES
from evaluation.html_page import cells, data_uri, render_page
from evaluation.images import read_rgb, to_tensor
from evaluation.line_chart import line_chart
from evaluation.output_folder import read_manifest
from evaluation.quality import PairScore, QualitySummary, pair_folders, score_batch, summarise
from evaluation.reconstruction import INPUT_FOLDER, OUTPUT_FOLDER
from evaluation.training_log import TrainingLog
from networks.config import TokenizerConfig

GATE_DB = 5.0
SHOWN_CROPS = 16
ERROR_FULL = 64  # levels of 255 at which the error map is brightest
ERROR_COLOURS = ((0, 0, 0), (96, 22, 78), (222, 84, 38), (255, 236, 170))
TEMPLATE = Path(__file__).with_suffix(".html")

TOKENIZER, DOWN8, MEAN_COLOUR = "tokenizer", "down8", "mean_colour"
_TITLES = {
    TOKENIZER: "Tokenizer",
    DOWN8: "8x baseline: reduced 8 times by area, enlarged by bicubic",
    MEAN_COLOUR: "Mean colour of each crop",
}


@dataclass(frozen=True)
class ModelFacts:
    """What a table of two models compares.

    Args:
        tokenizer: its shape.
        parameters: number of trained parameters.
        batch_size: images per optimiser step.
        total_kimg: images of the whole training, in thousands.
        losses: names of the terms that take part.
    """

    tokenizer: TokenizerConfig
    parameters: int
    batch_size: int
    total_kimg: float
    losses: tuple[str, ...]


@dataclass(frozen=True)
class ScoredCrops:
    """Held-out crops, uint8 [N, 3, R, R], with what was predicted for them and how well."""

    names: list[str]
    inputs: Tensor
    predictions: dict[str, Tensor]
    scores: dict[str, list[PairScore]]
    manifest: dict[str, Any]

    def summary(self, method: str, photograph: str | None = None) -> QualitySummary:
        """Means of one method, over all crops or those of one photograph."""
        return summarise([score for score in self.scores[method] if photograph in (None, photograph_of(score.name))])

    def photographs(self) -> list[str]:
        """Names of the photographs that the crops are from, in order."""
        return list(dict.fromkeys(photograph_of(name) for name in self.names))


@dataclass(frozen=True)
class Report:
    """All that goes into the page.

    Args:
        photographs: content of `photographs.json`.
        seed: seed of the training run.
        published_name: how the page calls the configuration that this run is compared with.
    """

    crops: ScoredCrops
    photographs: dict[str, Any]
    log: TrainingLog
    model: ModelFacts
    published: ModelFacts
    published_name: str
    seed: int

    def margin(self, baseline: str) -> float:
        """By how many dB the tokenizer is above a baseline."""
        return self.crops.summary(TOKENIZER).psnr - self.crops.summary(baseline).psnr


def photograph_of(name: str) -> str:
    """`chelsea_007.png` -> `chelsea`."""
    return name.rpartition("_")[0]


def score_crops(images_dir: str | Path) -> ScoredCrops:
    """Read what `reconstruct.py` wrote and score it beside the baselines.

    Raises: DataError if files are missing, unreadable or of different sizes.
    """
    images_dir = Path(images_dir)
    pairs = pair_folders(images_dir / INPUT_FOLDER, images_dir / OUTPUT_FOLDER)
    manifest = read_manifest(images_dir)
    inputs = _stack(pairs.ref_dir, pairs.names)
    predictions = {TOKENIZER: _stack(pairs.pred_dir, pairs.names)}
    predictions |= {name: predict(inputs) for name, predict in BASELINES.items()}
    scores = {name: score_batch(inputs, images, pairs.names) for name, images in predictions.items()}
    return ScoredCrops(list(pairs.names), inputs, predictions, scores, manifest)


def read_photographs(path: str | Path) -> dict[str, Any]:
    """The index that `tools/quickstart/photographs.py` wrote. Raises DataError if it is missing or not one."""
    try:
        index = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run tools/quickstart/photographs.py again.") from error
    if not isinstance(index, dict) or not {"recipe", "photographs"} <= index.keys():
        raise DataError(f"{path}: found another JSON file, expected the index of tools/quickstart/photographs.py.")
    return index


def _stack(folder: Path, names: Iterable[str]) -> Tensor:
    images = [to_tensor(np.asarray(read_rgb(folder / name))) for name in names]
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) > 1:
        raise DataError(f"{folder}: found images of different sizes {sorted(sizes)}, expected crops of one size.")
    return torch.stack(images)


def results_of(report: Report) -> dict[str, Any]:
    """The numbers of the page as plain values, rounded to 4 digits (seconds to 1)."""
    own = report.crops.summary(TOKENIZER)
    results: dict[str, Any] = {"psnr": own.psnr, "ssim": own.ssim, "ssim_01": own.ssim_01}
    for method in BASELINES:
        baseline = report.crops.summary(method)
        results[f"baseline_{method}_psnr"] = baseline.psnr
        results[f"baseline_{method}_ssim"] = baseline.ssim
    results["psnr_by_photograph"] = {
        photograph: {method: round(report.crops.summary(method, photograph).psnr, 4) for method in report.crops.scores}
        for photograph in report.crops.photographs()
    }
    results = {key: round(value, 4) if isinstance(value, float) else value for key, value in results.items()}
    return results | {
        "above_mean_colour_by_gate": report.margin(MEAN_COLOUR) >= GATE_DB,
        "above_down8": report.margin(DOWN8) > 0,
        "train_seconds": round(report.log.seconds, 1),
        "train_kimg": report.log.kimg,
        "seed": report.seed,
        "count": own.total,
        "held_out": report.crops.photographs(),
        "parameters": report.model.parameters,
        "latent_shape": list(_latent_shape(report.model.tokenizer)),
        "photographs": report.photographs["recipe"],
        "reconstruction": report.crops.manifest,
        "model": report.model.tokenizer.model_dump(mode="json"),
    }


def render(report: Report) -> str:
    """The page as HTML; images are embedded and nothing is loaded from anywhere."""
    own = report.crops.summary(TOKENIZER)
    entries = report.photographs["photographs"]
    stride = max(1, math.ceil(own.total / SHOWN_CROPS))
    values = {
        "psnr": f"{own.psnr:.2f}",
        "count": own.total,
        "gate": f"{GATE_DB:g}",
        "gate_verdict": _verdict(report.margin(MEAN_COLOUR), GATE_DB),
        "goal_verdict": _verdict(report.margin(DOWN8), 0.0),
        "held_out_photographs": escape(_listing(report.crops.photographs())),
        "training_photographs": sum(entry["split"] == "training" for entry in entries),
        "train_minutes": _duration(report.log.seconds),
        "images": f"{report.log.kimg * 1000:,.0f}",
        "batch_size": report.model.batch_size,
        "selection": f"All {own.total} crops"
        if stride == 1
        else f"One in {stride} of the {own.total} crops, taken in order of name",
        "error_full": ERROR_FULL,
        "error_gradient": ", ".join(f"rgb{colour}" for colour in ERROR_COLOURS),
        "published_name": escape(report.published_name).replace("_", "_<wbr>"),
        "seed": report.seed,
        "weights_sha256": escape(str(report.crops.manifest.get("weights_sha256", ""))[:16]),
        "versions": escape(", ".join(f"{k} {v}" for k, v in report.crops.manifest.get("versions", {}).items())),
    }
    rows = {
        "score_rows": _score_rows(report),
        "photograph_rows": _photograph_rows(report.crops),
        "crops": "".join(_crop_figure(report.crops, index) for index in range(0, own.total, stride)),
        "charts": _charts(report.log),
        "comparison_rows": _comparison_rows(report.model, report.published),
        "protocol": "".join(f"<li>{escape(line)}</li>" for line in _protocol(report)),
        "credit_rows": _credit_rows(entries),
    }
    return render_page(TEMPLATE, values | rows)


# --- parts of the page -----------------------------------------------------------------------------------------


def _verdict(margin: float, needed: float) -> str:
    kind = "met" if margin >= needed and margin > 0 else "missed"
    return f'<span class="{kind}">{kind}</span> ({margin:+.2f} dB)'


def _score_rows(report: Report) -> str:
    side = report.crops.inputs.shape[-1]
    kept = {TOKENIZER: math.prod(_latent_shape(report.model.tokenizer)), DOWN8: 3 * (side // 8) ** 2, MEAN_COLOUR: 3}
    rows = []
    for method, title in _TITLES.items():
        summary = report.crops.summary(method)
        numbers = (f"{summary.psnr:.2f}", f"{summary.ssim:.3f}", f"{summary.ssim_01:.3f}", kept[method])
        mark = ' class="own"' if method == TOKENIZER else ""
        rows.append(f"<tr{mark}>{cells(title, *(('n', number) for number in numbers))}</tr>")
    return "".join(rows)


def _photograph_rows(crops: ScoredCrops) -> str:
    rows = []
    for photograph in crops.photographs():
        summaries = [crops.summary(method, photograph) for method in _TITLES]
        values = [summaries[0].total, *(f"{summary.psnr:.2f}" for summary in summaries)]
        rows.append(f"<tr>{cells(photograph, *(('n', value) for value in values))}</tr>")
    return "".join(rows)


def error_map(a: Tensor, b: Tensor) -> Tensor:
    """Absolute difference, mean over colours, from dark (0) to bright (`ERROR_FULL` levels and more).

    Args:
        a, b: uint8 [3, H, W].
    Returns: uint8 [3, H, W].
    """
    share = (a.float() - b.float()).abs().mean(0).div(ERROR_FULL).clamp(0, 1)  # [H, W]
    colours = torch.tensor(ERROR_COLOURS, dtype=torch.float32)
    place = share * (len(colours) - 1)
    lower = place.floor().clamp(max=len(colours) - 2).long()
    part = (place - lower).unsqueeze(-1)
    return torch.lerp(colours[lower], colours[lower + 1], part).round().to(torch.uint8).permute(2, 0, 1)


def _crop_figure(crops: ScoredCrops, index: int) -> str:
    name, image = crops.names[index], crops.inputs[index]
    own, down8 = (crops.predictions[method][index] for method in (TOKENIZER, DOWN8))
    shown = (
        ("input", image),
        ("reconstruction", own),
        ("error", error_map(image, own)),
        ("8x baseline", down8),
    )
    stem = name.removesuffix(".png")
    images = "".join(f'<img alt="{escape(stem)}, {kind}" src="{data_uri(pixels)}">' for kind, pixels in shown)
    labels = "".join(f"<small>{kind}</small>" for kind, _ in shown)
    scores = [crops.scores[method][index].psnr for method in (TOKENIZER, DOWN8)]
    caption = f"<b>{escape(stem)}</b><span>{scores[0]:.1f} dB (8x baseline {scores[1]:.1f})</span>"
    return f"<figure>{images}{labels}<figcaption>{caption}</figcaption></figure>"


def _charts(log: TrainingLog) -> str:
    names = sorted(log.losses, key=lambda name: (name != "total", "/" in name, name))
    return "".join(
        f"<figure><figcaption>{escape(name)}</figcaption>"
        f"{line_chart(log.losses[name], f'{name} over thousand images', 'thousand images')}</figure>"
        for name in names
    )


def _latent_shape(tokenizer: TokenizerConfig) -> tuple[int, int, int]:
    return tokenizer.latent.channels(), tokenizer.latent_side(), tokenizer.latent_side()


def _comparison_rows(model: ModelFacts, published: ModelFacts) -> str:
    rows = [(label, describe(model), describe(published)) for label, describe in _COMPARED]
    return "".join(f"<tr>{cells(label, ('', own), ('', other))}</tr>" for label, own, other in rows)


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


_COMPARED = (
    ("Trained parameters", lambda m: f"{m.parameters / 1e6:.2f} million"),
    ("Image side", lambda m: f"{m.tokenizer.img_resolution} pixels"),
    ("Frozen encoder", lambda m: Path(m.tokenizer.encoder.vfm_name).name),
    ("Fused encoder layers", lambda m: _numbers(m.tokenizer.encoder.patch_from_layers)),
    ("Their channels", lambda m: _numbers(m.tokenizer.encoder.patch_in_dimensions)),
    ("Channels after projection", lambda m: _numbers(m.tokenizer.latent.patch_out_dimensions)),
    ("Latent (channels, height, width)", lambda m: " x ".join(map(str, _latent_shape(m.tokenizer)))),
    ("Style vector", lambda m: f"{m.tokenizer.decoder.z_dim_for_mapping_mlp_output} channels"),
    ("Decoder blocks, sides", lambda m: _numbers(m.tokenizer.decoder.block_resolutions(m.tokenizer.img_resolution))),
    ("Decoder blocks, channels", lambda m: _numbers(m.tokenizer.decoder.block_channels(m.tokenizer.img_resolution))),
    ("Residual groups per block", lambda m: str(m.tokenizer.decoder.num_res_blocks)),
    (
        "Attention",
        lambda m: (
            f"{_numbers(m.tokenizer.decoder.attn_depths)} layers in blocks "
            f"{_numbers(m.tokenizer.decoder.attn_block_indices)}; {m.tokenizer.decoder.attn_heads} heads"
        ),
    ),
    ("Images per step", lambda m: str(m.batch_size)),
    ("Images of the whole stage", lambda m: f"{m.total_kimg * 1000:,.0f}"),
    ("Losses", lambda m: ", ".join(m.losses)),
)


def _protocol(report: Report) -> list[str]:
    recipe, manifest = report.photographs["recipe"], report.crops.manifest
    protocol, counts = manifest.get("protocol", {}), manifest.get("counts", {})
    side = report.crops.inputs.shape[-1]
    return [
        f"Training: {recipe['train_count']} square crops, sides log-uniform from {recipe['stored_size']} pixels up to "
        f"the whole short side, area-averaged to {recipe['stored_size']} pixels, drawn with seed {recipe['seed']}; "
        "everyday colour photographs are drawn four times as often as scientific and grey ones.",
        f"Evaluation: {recipe['held_out_count']} square crops of {_listing(recipe['held_out'])}, sides log-uniform "
        f"from {side} pixels up to the whole short side, area-averaged to {side} x {side} pixels, PNG.",
        f"Reconstruction: {manifest.get('weights', 'ema')} weights, {protocol.get('latent')} of the posterior "
        f"with seed {protocol.get('seed')} per image, {protocol.get('crop')} crop at {protocol.get('resolution')} "
        f"pixels; {counts.get('reconstructed', 0) + counts.get('kept', 0)} of {counts.get('found')} images, "
        f"{counts.get('unreadable')} not readable.",
        "Files: 8-bit PNG; the tokenizer's values are truncated to whole levels, as published tools do, those of the "
        "baselines rounded.",
        "PSNR: 10 log10(255^2 / mean squared error) of each image over all channels and pixels, then the mean.",
        "SSIM: Gaussian window of 11 x 11 pixels, sigma 1.5, mean of the whole map with reflected border.",
        "Baselines: the mean colour of the crop; the crop averaged over 8 x 8 blocks and enlarged by bicubic "
        "interpolation, clamped.",
    ]


def _credit_rows(entries: list[dict[str, Any]]) -> str:
    rows = []
    for entry in sorted(entries, key=lambda entry: (entry["split"] != "held out", entry["label"])):
        size = f"{entry['width']} x {entry['height']}"
        use = "evaluation" if entry["split"] == "held out" else "training"
        numbers = (("", use), ("n", size), ("n", entry["crops"]), ("", entry["licence"]), ("", entry["credit"]))
        rows.append(f"<tr>{cells(entry['name'], *numbers)}</tr>")
    return "".join(rows)


def _listing(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.1f} minutes"
