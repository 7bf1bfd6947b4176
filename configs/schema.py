"""The root of the configuration: which experiments there are, and how a file becomes one.

    YAML (this project's or the reference's) -> Source -> the experiment of its `system` -> trainer and tools

Imports no torch. All problems that need no weights are found here, together, before any network is built.
"""

from __future__ import annotations

import argparse
import copy
import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.config import (
    Problem,
    Source,
    StrictModel,
    apply_overrides,
    load_source,
    merge,
    read_yaml,
    report,
    validate,
)
from common.errors import ConfigError
from common.registry import closest
from configs.experiment import Experiment
from configs.gpt_c2i import GPTExperiment
from configs.lightningdit import LightningDiTExperiment
from configs.reference import is_reference_layout, translate
from configs.reg import REGExperiment
from configs.tokenizer import TokenizerExperiment
from configs.vfm_vae import VFMVAEExperiment
from configs.vfmtok import VFMTokExperiment
from data.locations import is_remote
from networks.encoders.recognition import local_folder
from trainer.systems import SYSTEMS

if TYPE_CHECKING:
    from networks.checkpoint.folder import Shape

EXPERIMENTS: dict[str, type[Experiment]] = {
    "vfm_vae": VFMVAEExperiment,
    "vfmtok": VFMTokExperiment,
    "lightningdit": LightningDiTExperiment,
    "reg": REGExperiment,
    "gpt_c2i": GPTExperiment,
}

PRESETS = Path(__file__).parent / "presets"

Kind = TypeVar("Kind", bound=Experiment)


# --- what a run needs from outside -----------------------------------------------------------------------------


def missing_paths(experiment: type[Experiment], values: Mapping[str, Any]) -> list[Problem]:
    """Files and folders that the values of an experiment's configuration name and that are not here."""
    problems = []
    for key in experiment.PATHS:
        value = _value_at(values, key)
        named = key == "data.path" and isinstance(value, str) and (is_remote(value) or "{" in value)
        if isinstance(value, str) and not named and not Path(value).expanduser().exists():
            remedy = experiment.REMEDIES.get(key, "")
            problems.append(Problem(key, f"found {value!r}, which does not exist{_nearest_path(value)}.{remedy}"))
    for key in experiment.MODELS:
        value = _value_at(values, key)
        for name in value if isinstance(value, list) else [value]:
            folder = local_folder(name) if isinstance(name, str) else None
            if folder is not None and not folder.exists():
                problems.append(Problem(key, f"found {name!r}, which does not exist; give a folder or a hub id."))
    return problems


def _value_at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _nearest_path(value: str) -> str:
    parent = Path(value).parent
    siblings = [p.name for p in parent.iterdir()] if parent.is_dir() else []
    near = difflib.get_close_matches(Path(value).name, siblings, n=1, cutoff=0.7)
    return f" (closest in that folder: {near[0]})" if near else ""


# --- loading ---------------------------------------------------------------------------------------------------


class LoadedConfig:
    """A checked configuration with where it came from and what it lacks.

    Attributes:
        config: the resolved configuration.
        missing: paths that do not exist.
        notes: what the translation of a reference file left out or decided, for the user to read.
    """

    def __init__(self, config: Experiment, source: Source, notes: Sequence[str]):
        self.config = config
        self.source = source
        self.notes = list(notes)
        self.missing = missing_paths(type(config), source.values)

    def warnings(self) -> str:
        """What is missing, as a text for `--print-config` and `--dry-run`; empty if nothing is."""
        return report(self.source, self.missing) if self.missing else ""


def load_config(
    path: str | Path, overrides: Sequence[str] = (), require_runnable: bool = False, presets: Sequence[str] = ()
) -> LoadedConfig:
    """Read, translate if it is a reference file, override and check a configuration.

    Args:
        path: a YAML of this project or of the reference.
        overrides: `section.key=value`, in this project's names also for a translated file.
        require_runnable: missing paths join the other problems.
        presets: names of files in `configs/presets`, which override the file and are overridden in turn.

    Raises: ConfigError that lists every problem.
    """
    source = load_source(path)
    notes: list[str] = []
    problems: list[Problem] = []
    if is_reference_layout(source.values):
        translation = translate(source)
        source, notes, problems = translation.source, translation.notes, translation.problems
    for preset in presets:
        file = PRESETS / f"{preset}.yaml"
        merge(source, read_yaml(file), str(file))
    return check(apply_overrides(source, overrides), notes, problems, require_runnable)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The options from which a command reads a configuration: --config, --preset, --set."""
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML of this project or of the reference")
    parser.add_argument(
        "--preset",
        action="append",
        default=[],
        choices=sorted(file.stem for file in PRESETS.glob("*.yaml")),
        dest="presets",
        help="settings to lay over the file: those of configs/presets/NAME.yaml",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="section.key=value", dest="overrides", help="override a key"
    )


def check(
    source: Source,
    notes: Sequence[str] = (),
    earlier: Sequence[Problem] = (),
    require_runnable: bool = False,
) -> LoadedConfig:
    """Validate a source with all relations.

    Raises: ConfigError that lists every problem, the `earlier` ones first.
    """
    assert set(EXPERIMENTS) == set(SYSTEMS)
    system = source.values.get("system", "vfm_vae")
    if system not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        message = f"found {system!r}, expected one of {known}. Closest: {closest(str(system), EXPERIMENTS)}."
        raise ConfigError(report(source, [Problem("system", message)]))
    experiment = EXPERIMENTS[system]
    config, problems = validate(experiment, source.values, experiment.RELATIONS)
    problems = [*earlier, *problems]
    if require_runnable:
        problems += missing_paths(experiment, source.values)
    if problems or config is None:
        raise ConfigError(report(source, problems))
    return LoadedConfig(config, source, notes)


def of_kind(loaded: LoadedConfig, kind: type[Kind]) -> Kind:
    """The configuration, for what works on one kind of systems only. Raises ConfigError if it is of another one."""
    if not isinstance(loaded.config, kind):
        expected = " or ".join(name for name, experiment in EXPERIMENTS.items() if issubclass(experiment, kind))
        problem = Problem("system", f"found {loaded.config.system}, expected {expected}.")
        raise ConfigError(report(loaded.source, [problem]))
    return loaded.config


def load_tokenizer_config(path: str | Path | None) -> Shape | None:
    """The shape of the tokenizer that a YAML describes; None without one: the checkpoint then says it.

    Raises: ConfigError as `load_config`, and if the YAML is of a system that trains no tokenizer.
    """
    return of_kind(load_config(path), TokenizerExperiment).tokenizer() if path else None


def load_experiment(
    kind: type[Kind],
    path: str | Path | None,
    overrides: Sequence[str],
    otherwise: Callable[[], tuple[str, Mapping[str, Any]]],
) -> Kind:
    """The configuration of a trained model: from a YAML if there is one, else what its checkpoint carries.

    Args:
        otherwise: name and values of the latter.
    Raises: ConfigError that lists every problem, or if it is of another system.
    """
    if path is not None:
        return of_kind(load_config(path, overrides), kind)
    name, values = otherwise()
    return of_kind(check(apply_overrides(Source(name, copy.deepcopy(dict(values))), overrides)), kind)


def dump(config: StrictModel) -> dict[str, Any]:
    """A configuration as plain YAML and JSON values; loading it again gives an equal configuration."""
    return config.model_dump(mode="json")
