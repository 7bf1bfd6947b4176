"""The page of an analysis: self-contained HTML with heat maps, a table of every pair and the protocol."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from common.checkpoint_folder import library_versions
from evaluation.alignment.conditions import CLEAN
from evaluation.alignment.config import DiffusionSection, ModelSection
from evaluation.alignment.heat_map import heat_map_svg
from evaluation.alignment.metrics import METRICS
from evaluation.alignment.models.diffusion import output_name
from evaluation.alignment.scores import ScoreMatrix
from evaluation.html_page import cells, render_page
from evaluation.line_chart import COLOURS, chart_file, finite

if TYPE_CHECKING:
    from evaluation.alignment.analysis import AlignmentResult

TEMPLATE = Path(__file__).with_suffix(".html")


def render(result: AlignmentResult) -> str:
    """The page as HTML; pictures are embedded and nothing is loaded from anywhere."""
    found, title = result.found, METRICS[result.scoring.metric].title
    clean_map = heat_map_svg(result.heat_map(f"{title}, clean images", found.clean.values))
    mean_map = heat_map_svg(result.heat_map(f"SE-{title}", found.mean.values)) if found.how.conditions else ""
    return render_page(
        TEMPLATE,
        {
            "title": escape(title),
            "rows_title": escape(", ".join(result.config.rows)),
            "columns_title": escape(", ".join(result.config.columns)),
            "images": f"{found.mean.images:,}",
            "seen": _seen(result, escape(title)),
            "neighbours": f", by {result.scoring.k} neighbours" if result.scoring.k_used else "",
            "mean_map": mean_map,
            "clean_map": clean_map,
            "layer_charts": "".join(_layer_charts(result, f"SE-{title}" if found.how.conditions else title)),
            "heads": "".join(f'<th class="n">{escape(head)}</th>' for head in _heads(result, title)),
            "pair_rows": "".join(_pair_rows(result)),
            "error_note": escape(_error_note(result)),
            "protocol": "".join(f"<li>{escape(line)}</li>" for line in _protocol(result)),
            "versions": escape(", ".join(f"{library} {version}" for library, version in library_versions().items())),
        },
    )


def _seen(result: AlignmentResult, title: str) -> str:
    """On which images models are compared."""
    count = len(result.found.how.conditions)
    return (
        f"on the clean images, and as the mean over {count} transformed sets of them (SE-{title})"
        if count
        else ("on the clean images")
    )


def _heads(result: AlignmentResult, title: str) -> list[str]:
    """Heads of the numbers of a pair."""
    conditions = result.found.how.conditions
    return ["Clean", *([f"SE-{title}", "Change", *conditions] if conditions else [])]


def _layer_charts(result: AlignmentResult, title: str) -> Iterator[str]:
    """Of each model with several outputs: the aggregated score over its layers, one curve per column."""
    for model in result.config.rows:
        for when, ending in _noise_levels(result.config.models[model]).items():
            places = [
                i for i, label in enumerate(result.rows) if label.startswith(f"{model} ") and label.endswith(ending)
            ]
            if len(places) > 2 and len(result.columns) <= len(COLOURS):
                values = result.found.mean.values[places].T.tolist()
                curves = {column: list(enumerate(scores)) for column, scores in zip(result.columns, values)}
                if any(map(finite, curves.values())):
                    heading = f"{title} over the layers of {model}{when}"
                    yield chart_file(curves, heading, "layer, from the first to the last")


def _noise_levels(section: ModelSection) -> dict[str, str]:
    """Of a diffusion model: each share of noise in words, with the ending of its outputs' names."""
    if not isinstance(section, DiffusionSection):
        return {"": ""}
    return {f" at {t:.1%} noise": output_name("", t) for t in section.timesteps}


def _pair_rows(result: AlignmentResult) -> Iterator[str]:
    found = result.found
    for i, row in enumerate(result.rows):
        for j, column in enumerate(result.columns):
            numbers = [_with_error(found.clean, i, j)]
            if found.how.conditions:
                numbers += [
                    _with_error(found.mean, i, j),
                    _show(found.relative_change[i, j].item(), "+.1%"),
                    *(_show(found.by_condition[c].values[i, j].item()) for c in found.how.conditions),
                ]
            yield f"<tr>{cells(row, ('', column), *(('n', number) for number in numbers))}</tr>"


def _show(value: float, form: str = ".3f") -> str:
    return format(value, form) if math.isfinite(value) else "–"


def _with_error(scores: ScoreMatrix, i: int, j: int) -> str:
    error = scores.standard_errors()[i, j].item()
    shown = _show(scores.values[i, j].item())
    return f"{shown} ± {error:.3f}" if math.isfinite(error) else shown


def _error_note(result: AlignmentResult) -> str:
    if not result.scoring.halves:
        return "Standard errors were not asked for (halves: 0)."
    return (
        f"± is a standard error over the choice of images: the standard deviation over {result.scoring.halves} random "
        "halves of them, an upper estimate where neighbours count. It says nothing of other data sets, seeds of "
        "transformations or training runs."
    )


def _protocol(result: AlignmentResult) -> list[str]:
    how, config = result.found.how, result.config
    mean = ", ".join(name if how.weight(name) == 1 else f"{how.weight(name):g} x {name}" for name in how.averaged)
    seen = "the images of the same condition" if how.reference == "same" else f"always the {CLEAN} images"
    lines = [
        f"Mean over {mean}. Columns see {seen}.",
        f"Images: {config.images}, {config.resolution} pixels; turned counter-clockwise, then scaled with "
        "antialiasing, before any model; each model then resizes and normalises as it is made to.",
        "Features: mean over positions, one vector per image; absolute values clipped at their 0.95 quantile over the "
        "whole matrix, rows divided by their length.",
        f"Metric: {config.metric} of (row, column), in this order"
        + (f", {config.topk} neighbours" if result.scoring.k_used else "")
        + f", eps {config.eps:g}.",
    ]
    for name in config.used_models:
        section = config.models[name]
        facts = section.model_dump(exclude_defaults=True)
        lines.append(f"{name}: {section.kind}, " + ", ".join(f"{key} {value}" for key, value in facts.items()) + ".")
    return lines
