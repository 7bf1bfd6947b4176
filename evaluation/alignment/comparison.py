"""Compare feature files with feature files by any number of metrics, and write what was found."""

from __future__ import annotations

import glob
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from common.checkpoint_folder import library_versions
from common.errors import DataError
from common.files import sha256_of, write_atomically, write_json_atomically
from evaluation.alignment.features import read_features
from evaluation.alignment.heat_map import HeatMap
from evaluation.alignment.metrics import METRICS
from evaluation.alignment.results import ScoreRecord, plain_scoring, records_of, show_record
from evaluation.alignment.scores import ScoreMatrix, Scoring, score_matrix


@dataclass(frozen=True)
class Way:
    """One metric on all rows and columns.

    Args:
        name: the metric, with its k where several were asked for.
        seconds: of each trial.
    """

    name: str
    how: Scoring
    scores: ScoreMatrix
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Args:
        rows, columns: the files.
        ways: one per metric and k.
    """

    rows: tuple[Path, ...]
    columns: tuple[Path, ...]
    ways: tuple[Way, ...]

    def records(self) -> list[ScoreRecord]:
        """Every score."""
        names = [list(map(str, paths)) for paths in (self.rows, self.columns)]
        return [record for way in self.ways for record in records_of(*names, way.scores, way.how)]

    def heat_map(self) -> HeatMap:
        """The first metric as a picture."""
        way = self.ways[0]
        title = METRICS[way.how.metric].title + (f", k = {way.how.k}" if way.how.k_used else "")
        return HeatMap(title, _labels(self.rows), _labels(self.columns), way.scores.values)

    def as_text(self) -> str:
        """Every score for the terminal."""
        lines = [f"{self.ways[0].scores.images} images"]
        for way in self.ways:
            for record in records_of(_labels(self.rows), _labels(self.columns), way.scores, way.how):
                pair = "" if len(self.rows) == len(self.columns) == 1 else f"  {record.row}  {record.column}"
                lines.append(f"{way.name}: {show_record(record)}{pair}")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write `.json`, or `.pt` in the published layout (one pair of files only).

        Raises: DataError for a `.pt` of a matrix.
        """
        if path.suffix == ".json":
            write_json_atomically(path, self._as_json())
            return
        if len(self.rows) > 1 or len(self.columns) > 1:
            raise DataError(f"{path}: the published layout holds one pair of files; write a .json for a matrix.")
        content = self._published()
        write_atomically(path, lambda partial: torch.save(content, partial))

    def _as_json(self) -> dict[str, Any]:
        return {
            "scores": [asdict(record) for record in self.records()],
            "protocol": plain_scoring(self.ways[0].how),
            "files": {str(path): {"sha256": sha256_of(path)} for path in (*self.rows, *self.columns)},
            "seconds": {way.name: way.seconds for way in self.ways},
            "versions": library_versions(),
        }

    def _published(self) -> dict[str, Any]:
        results = {}
        for way in self.ways:
            trials = [way.scores.values.item()] * len(way.seconds)  # nothing is drawn: all trials are equal
            mean_time = statistics.fmean(way.seconds)
            results[way.name] = {"mean": trials[0], "std": 0.0, "scores": trials, "mean_time": mean_time}
        return {
            "results": results,
            "feat_file1": str(self.rows[0]),
            "feat_file2": str(self.columns[0]),
            "metrics_computed": list(results),
            "trials": len(self.ways[0].seconds),
            "total_time": sum(sum(way.seconds) for way in self.ways),
        }


def compare_files(
    rows: Sequence[Path], columns: Sequence[Path], ways: Sequence[Scoring], trials: int = 1
) -> Comparison:
    """Score every row file with every column file in every way.

    Args:
        trials: how often, to time it.

    Raises: DataError or CheckpointError for files that are missing, damaged, or of other images.
    """
    first, second = ([read_features(path) for path in paths] for paths in (rows, columns))
    several = len({how.k_used for how in ways} - {None}) > 1
    found = []
    for how in ways:
        seconds = []
        for _ in range(trials):
            started = time.perf_counter()
            scores = score_matrix(first, second, how)
            seconds.append(time.perf_counter() - started)
        name = f"{how.metric}_k{how.k}" if several and how.k_used else how.metric
        found.append(Way(name, how, scores, tuple(seconds)))
    return Comparison(tuple(rows), tuple(columns), tuple(found))


def expand_patterns(patterns: Sequence[str]) -> list[Path]:
    """Files that match, in natural order (block_2 before block_10), each once.

    Raises: DataError for a pattern without a match.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        matches = sorted(map(Path, glob.glob(pattern)), key=natural_order)
        if not matches:
            raise DataError(f"{pattern}: no file matches; quote patterns, so that the shell leaves them alone.")
        files |= dict.fromkeys(matches)
    return list(files)


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Sort key: numbers in a name count as numbers, so that block_2 comes before block_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _labels(paths: Sequence[Path]) -> list[str]:
    return [path.stem for path in paths]
