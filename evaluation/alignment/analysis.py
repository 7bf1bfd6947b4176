"""A whole analysis: features of every model under every condition, their scores, and the report.

Features are kept below `<output_dir>/features` and taken again if model, weights, images and protocol are the same; so
a run that was stopped goes on, and another k or aggregation costs no extraction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import distributed
from common.checkpoint_folder import library_versions
from common.files import write_json_atomically, write_text_atomically
from evaluation.alignment.conditions import CLEAN, expand
from evaluation.alignment.config import AlignmentConfig, DiffusionSection
from evaluation.alignment.extraction import (
    ExtractionOptions,
    extract_parts_to_folder,
    extract_to_folder,
    feature_path,
    part_path,
)
from evaluation.alignment.features import FeatureSet, read_features
from evaluation.alignment.heat_map import HeatMap
from evaluation.alignment.images import AnalysisImages
from evaluation.alignment.models.base import ReadShape, load_model
from evaluation.alignment.models.diffusion import DiffusionFeatures, open_latents, output_name
from evaluation.alignment.report import render
from evaluation.alignment.results import ScoreRecord, plain_se, records_of, write_scores_csv
from evaluation.alignment.scores import Scoring
from evaluation.alignment.se_cknna import Aggregation, SeScores, score_conditions


@dataclass(frozen=True)
class Output(Mapping[str, FeatureSet]):
    """One output of a model, a row or a column of the matrix: its features by condition.

    They are read whenever they are asked for, so that those of one condition are in memory at a time.

    Args:
        label: the model's name, with that of the output where it has several.
        files: of its features, by condition.
    """

    label: str
    files: Mapping[str, Path]

    def __getitem__(self, condition: str) -> FeatureSet:
        return read_features(self.files[condition])

    def __contains__(self, condition: object) -> bool:
        return condition in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def aggregation_of(config: AlignmentConfig) -> Aggregation:
    """How the configuration averages over conditions."""
    return Aggregation(config.condition_names, config.include_clean, config.reference, config.weights)


def extract_models(config: AlignmentConfig, device: torch.device, read_shape: ReadShape) -> dict[str, list[Output]]:
    """Extract the features that are missing; every rank must call it.

    Returns: the outputs of every model by its name.
    Raises: UserError for models or images that cannot be read.
    """
    aggregation = aggregation_of(config)
    folder = Path(config.output_dir) / "features"
    images = distributed.on_rank_0(lambda: AnalysisImages(config.images))
    how = ExtractionOptions(config.resolution, config.batch_size_per_gpu, device, config.num_workers)
    outputs = {}
    for name in config.used_models:
        section = config.models[name]
        model = load_model(section, device, read_shape)
        if isinstance(model, DiffusionFeatures):
            files = _extract_parts(model, section, folder, name, how)
        else:
            needs_all = name in config.rows or aggregation.reference == "same"
            conditions = expand(aggregation.scored if needs_all else (CLEAN,))
            extract_to_folder(model, section, images, conditions, folder, name, how)
            files = {
                output: {c.name: feature_path(folder, name, model.outputs, output, c.name, ".pt") for c in conditions}
                for output in model.outputs
            }
        outputs[name] = [Output(name if len(files) == 1 else f"{name} {output}", files[output]) for output in files]
    return outputs


def _extract_parts(
    model: DiffusionFeatures, section: DiffusionSection, folder: Path, name: str, how: ExtractionOptions
) -> dict[str, dict[str, Path]]:
    """Files of a diffusion model by output, then condition, of which there is one."""
    stored = open_latents(section, model.network)
    extract_parts_to_folder(model, section, stored, folder, name, how.batch_size, how.device)
    return {
        output_name(part, t): {CLEAN: part_path(folder, name, part, t, ".pt")}
        for t in model.timesteps
        for part in model.parts
    }


def write_analysis(config: AlignmentConfig, outputs: Mapping[str, list[Output]], device: torch.device) -> None:
    """Score, and write report.html, report.json and scores.csv; one process does it, others need not wait.

    Raises: UserError for features that do not belong together.
    """
    aggregation = aggregation_of(config)
    rows, columns = ([output for name in names for output in outputs[name]] for names in (config.rows, config.columns))
    scoring = Scoring(
        config.metric, config.topk, config.eps, min_overlap=config.min_overlap, halves=config.halves, device=device
    )
    found = score_conditions(rows, columns, aggregation, scoring)
    result = AlignmentResult(config, [row.label for row in rows], [column.label for column in columns], scoring, found)
    folder = Path(config.output_dir)
    write_json_atomically(folder / "report.json", result.as_json())
    write_scores_csv(folder / "scores.csv", result.records())
    write_text_atomically(folder / "report.html", render(result))


@dataclass(frozen=True)
class AlignmentResult:
    """What an analysis found.

    Args:
        rows, columns: labels.
        found: scores under every condition and aggregated.
    """

    config: AlignmentConfig
    rows: Sequence[str]
    columns: Sequence[str]
    scoring: Scoring
    found: SeScores

    def heat_map(self, title: str, values: Tensor) -> HeatMap:
        """A matrix as a picture."""
        return HeatMap(title, self.rows, self.columns, values)

    def records(self) -> list[ScoreRecord]:
        """Every score: the aggregated ones, then those of every condition."""
        matrices = {f"se_{self.scoring.metric}": self.found.mean, **self.found.by_condition}
        return [
            record
            for condition, scores in matrices.items()
            for record in records_of(self.rows, self.columns, scores, self.scoring, condition)
        ]

    def as_json(self) -> dict[str, Any]:
        """Matrices, protocol, configuration and versions."""
        return {
            "rows": list(self.rows),
            "columns": list(self.columns),
            **plain_se(self.found, self.scoring),
            "transforms": "uniform",
            "config": self.config.model_dump(mode="json"),
            "versions": library_versions(),
        }
