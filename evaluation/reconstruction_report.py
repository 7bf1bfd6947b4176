"""The reconstruction benchmark: a JSON file of results with their protocol, a CSV file of all pairs, and a page.

reconstructed folder + its evaluation -> results.json, per_image.csv, report.html
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from common.files import sha256_of, write_json_atomically, write_text_atomically
from evaluation.histogram import histogram
from evaluation.html_page import cells, data_uri, render_page
from evaluation.images import to_tensor
from evaluation.quality import Pairs, PairScore, read_pixels, write_csv
from evaluation.reconstruction_scores import Evaluation

RESULTS_NAME = "results.json"
CSV_NAME = "per_image.csv"
REPORT_NAME = "report.html"
TEMPLATE = Path(__file__).with_suffix(".html")
SHOWN = 4  # pictures of each group: best, middle, worst
ERROR_GAIN = 5

# name of a metric -> its title, and what it is
_METRICS = {
    "psnr": ("PSNR, dB", "mean over images of 10 log10(255² / mean squared error)"),
    "ssim": ("SSIM", "structural similarity of images in [-1, 1], the convention of published tokenizer tables"),
    "ssim_01": ("SSIM on [0, 1]", "structural similarity of images in [0, 1], the usual convention"),
    "lpips": ("LPIPS", "perceptual distance, VGG16; lower is better"),
    "rfid": ("rFID", "Fréchet distance of Inception features between inputs and reconstructions; lower is better"),
    "ris_mean": ("rIS", "Inception Score of the reconstructions; higher is better"),
    "kid_mean": ("KID", "kernel distance of Inception features between inputs and reconstructions; lower is better"),
}
# ends of the names that the metrics of other networks have
_OTHER_METRICS = {
    "_frechet_distance": ("Fréchet distance", "the formula of rFID; lower is better"),
    "_score_mean": ("Score", "the formula of rIS; higher is better"),
    "_kernel_distance_mean": ("Kernel distance", "the formula of KID; lower is better"),
}


def _describe(name: str) -> tuple[str, str]:
    """Title of a metric, and what it is."""
    if name in _METRICS:
        return _METRICS[name]
    end = next(end for end in _OTHER_METRICS if name.endswith(end))
    network, (title, formula) = name.removesuffix(end), _OTHER_METRICS[end]
    return f"{title}, {network}", f"{formula}; on features of {network}, so it compares with the same number alone"


@dataclass(frozen=True)
class Benchmark:
    """All that the results say.

    Args:
        pairs: inputs and reconstructions.
        evaluation: of these pairs.
        manifest: what the reconstruction says of itself (`manifest.json`).
    """

    pairs: Pairs
    evaluation: Evaluation
    manifest: dict[str, Any]


def remove_results(output_dir: Path) -> None:
    """Delete the results of an earlier call, so that they never stand beside other images."""
    for name in (RESULTS_NAME, CSV_NAME, REPORT_NAME):
        (output_dir / name).unlink(missing_ok=True)


def write_benchmark(output_dir: Path, benchmark: Benchmark) -> dict[str, Any]:
    """Write the three files; returns the results."""
    results = results_of(benchmark)
    write_json_atomically(output_dir / RESULTS_NAME, results)
    write_csv(output_dir / CSV_NAME, benchmark.evaluation.scores)
    write_text_atomically(output_dir / REPORT_NAME, render(benchmark))
    return results


def results_of(benchmark: Benchmark) -> dict[str, Any]:
    """The results as plain values: metrics, what decides them, and hashes of what they were computed from."""
    pairs, evaluation = benchmark.pairs, benchmark.evaluation
    counts = evaluation.counts()
    return {
        "tool": "benchmark_tokenizer",
        "version": version("vfm-vae"),
        "num_images": counts.pop("total"),
        "metrics": evaluation.metrics(),
        "metric_counts": counts,
        "metric_protocol": evaluation.protocol(),
        "caution": None if evaluation.set_scores is None else evaluation.set_scores.caution,
        "inputs_sha256": folder_fingerprint(pairs.ref_dir, pairs.names),
        "outputs_sha256": folder_fingerprint(pairs.pred_dir, pairs.names),
        "reconstruction": benchmark.manifest,
        "per_image": CSV_NAME,
    }


def folder_fingerprint(folder: Path, names: Sequence[str]) -> str:
    """SHA-256 over the lines `<SHA-256 of the file>  <name>`, as `sha256sum` prints them, in order of name."""
    lines = (f"{sha256_of(folder / name)}  {name}\n" for name in sorted(names))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def amplified_error(a: Tensor, b: Tensor) -> Tensor:
    """`ERROR_GAIN` times the absolute difference of two uint8 images, clamped: black where they are equal."""
    return ((a.int() - b.int()).abs() * ERROR_GAIN).clamp(max=255).byte()


def render(benchmark: Benchmark) -> str:
    """The page as HTML; pictures are embedded, and nothing is loaded from anywhere."""
    evaluation, manifest = benchmark.evaluation, benchmark.manifest
    values, protocol = evaluation.metrics(), manifest["protocol"]
    unreadable = manifest["counts"]["unreadable"]
    caution = evaluation.set_scores.caution if evaluation.set_scores is not None else None
    return render_page(
        TEMPLATE,
        {
            "psnr": f"{evaluation.summary.psnr:.2f}",
            "count": f"{evaluation.summary.total:,}",
            "input_dir": _breakable(manifest.get("input_dir", "")),
            "checkpoint": _breakable(manifest.get("checkpoint", "")),
            "resolution": protocol["resolution"],
            "unreadable": f' <span class="missed">{unreadable} more could not be read.</span>' if unreadable else "",
            "figures": _figures(values),
            "caution": f'<p class="quiet">{escape(caution)}</p>' if caution else "",
            "metric_rows": _metric_rows(values),
            "histograms": _histograms(evaluation.scores),
            "ranked_by": "LPIPS" if evaluation.summary.lpips is not None else "PSNR",
            "error_gain": ERROR_GAIN,
            "pictures": _pictures(benchmark),
            "protocol_rows": _protocol_rows(benchmark),
        },
    )


# --- parts of the page -----------------------------------------------------------------------------------------------


def _breakable(path: object) -> str:
    """A path that may wrap after its slashes."""
    return escape(str(path)).replace("/", "/<wbr>")


def _names(values: dict[str, float | None]) -> list[str]:
    """The metrics that were computed; spreads go with their means."""
    return [name for name, value in values.items() if value is not None and not name.endswith("_std")]


def _number(name: str, values: dict[str, float | None]) -> str:
    value = values[name]
    text = f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.5f}"
    spread = values.get(f"{name.removesuffix('_mean')}_std") if name.endswith("_mean") else None
    return text if spread is None else f"{text} ± {spread:.2g}"


def _figures(values: dict[str, float | None]) -> str:
    shown = [name for name in _names(values) if name != "ssim_01"]
    return "".join(
        f"<div><b>{_number(name, values)}</b><span>{escape(_describe(name)[0])}</span></div>" for name in shown
    )


def _metric_rows(values: dict[str, float | None]) -> str:
    rows = [(_describe(name), _number(name, values)) for name in _names(values)]
    return "".join(f"<tr>{cells(title, ('n', number), ('', what))}</tr>" for (title, what), number in rows)


def _histograms(scores: Sequence[PairScore]) -> str:
    charts: dict[str, Callable[[PairScore], float]] = {
        "PSNR, dB": lambda score: score.psnr,
        "Error, levels of 255": lambda score: 255 * 10 ** (-score.psnr / 20),
        "SSIM": lambda score: score.ssim,
    }
    if scores[0].lpips is not None:
        charts["LPIPS"] = lambda score: score.lpips
    return "".join(
        f"<figure><figcaption>{title.partition(',')[0]}</figcaption>"
        f"{histogram([value(score) for score in scores], f'histogram of {title}', title)}</figure>"
        for title, value in charts.items()
    )


def _ranked(scores: Sequence[PairScore]) -> list[PairScore]:
    """Best first, by LPIPS where it was computed, else by PSNR."""
    if scores[0].lpips is not None:
        return sorted(scores, key=lambda score: score.lpips)
    return sorted(scores, key=lambda score: -score.psnr)


def _groups(scores: Sequence[PairScore]) -> dict[str, list[PairScore]]:
    """Best, middle and worst pairs, none of them twice."""
    ranked = _ranked(scores)
    size = min(SHOWN, math.ceil(len(ranked) / 3))
    middle = max(size, (len(ranked) - size) // 2)
    worst = max(middle + size, len(ranked) - size)
    return {"Best": ranked[:size], "Median": ranked[middle : middle + size], "Worst": ranked[worst:]}


def _pictures(benchmark: Benchmark) -> str:
    groups = {title: group for title, group in _groups(benchmark.evaluation.scores).items() if group}
    return "".join(
        f'<h3>{title}</h3><div class="crops">{"".join(_figure(benchmark.pairs, score) for score in group)}</div>'
        for title, group in groups.items()
    )


def _figure(pairs: Pairs, score: PairScore) -> str:
    image, output = (to_tensor(read_pixels(folder / score.name)) for folder in (pairs.ref_dir, pairs.pred_dir))
    shown = {"input": image, "reconstruction": output, f"{ERROR_GAIN} x error": amplified_error(image, output)}
    stem = escape(score.name.removesuffix(".png"))
    pictures = "".join(f'<img alt="{stem}, {kind}" src="{data_uri(pixels)}">' for kind, pixels in shown.items())
    labels = "".join(f"<small>{kind}</small>" for kind in shown)
    lpips = "" if score.lpips is None else f", LPIPS {score.lpips:.3f}"
    caption = f'<b class="name">{stem}</b><span>{score.psnr:.1f} dB, SSIM {score.ssim:.3f}{lpips}</span>'
    return f"<figure>{pictures}{labels}<figcaption>{caption}</figcaption></figure>"


def _protocol_rows(benchmark: Benchmark) -> str:
    manifest, evaluation = benchmark.manifest, benchmark.evaluation
    protocol, counts = manifest["protocol"], manifest["counts"]
    rows = {
        "Images": f"{counts['found']} found, {counts['reconstructed'] + counts['kept']} reconstructed, "
        f"{counts['unreadable']} not readable",
        "Crop": f"{protocol['crop']}, {protocol['resolution']} pixels",
        "Latent": f"{protocol['latent']} of the posterior, seed {protocol['seed']} per image",
        "PNG rounding": manifest["png_rounding"],
        "Weights": f"{manifest.get('weights', '')}, SHA-256 {manifest['weights_sha256']}",
        "Reconstructed on": f"{manifest['device']}; ranks: {manifest['ranks']}, images per batch: "
        f"{manifest['batch_size_per_rank']}",
    }
    for name, text in evaluation.protocol().items():
        if name == "sizes":
            rows["Compared"] = text
        elif name != "sets":
            rows[_describe(name)[0]] = text
    if evaluation.set_scores is not None:
        own = evaluation.set_scores.protocol
        rows["Features of sets"] = f"{own['extractor']} ({own['weights']}), {own['images']} images each"
    rows["Versions"] = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    return "".join(f"<tr>{cells(name, ('', text))}</tr>" for name, text in rows.items())
