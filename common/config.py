"""Strict configuration: YAML -> frozen pydantic models, with every problem in one report.

A file may name a `base:` (relative to itself) and list only what differs. `--set a.b=c` overrides a key. What is
wrong is collected, not raised one by one: unknown keys with the closest valid one, wrong types and values, and
relations between keys. A relation names the keys that it reads, and is tested unless one of them is already
in the report, so that one mistake never hides another.

This module imports no torch: a bad file or a `--help` costs none.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined

from common.errors import ConfigError
from common.registry import closest

KeyPath = tuple[str, ...]


class StrictModel(BaseModel):
    """A frozen section of a configuration; a key that it does not declare is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, strict=False)


Model = TypeVar("Model", bound=StrictModel)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what was found, what was expected and what to do."""

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


@dataclass(frozen=True)
class Relation:
    """A rule between keys.

    Args:
        keys: dotted paths that the rule reads; the problem is reported at the first of them.
        check: takes the whole configuration, returns what is wrong in words, or None.
    """

    keys: tuple[str, ...]
    check: Callable[[Any], str | None]


@dataclass
class Source:
    """The raw mapping of a configuration, and the file that each key came from."""

    path: str
    values: dict[str, Any]
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def origin(self, key: KeyPath) -> str:
        """The file (or "--set") that gave `key`, or the one that was loaded if none did."""
        while key and key not in self.origins:
            key = key[:-1]
        return self.origins.get(key, self.path)


# --- reading -------------------------------------------------------------------------------------------------


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and reads `1e-4` as a number, as YAML 1.2 does."""


_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _construct_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for position, key in enumerate(keys):
        if key in keys[:position]:
            line = node.value[position][0].start_mark.line + 1
            raise ConfigError(f"{loader.name}: line {line}: key {key!r} is given twice; keep one of them.")
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


_UniqueKeyLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def parse_yaml(text: str, name: str) -> Any:
    """Parse a YAML text; `name` stands for it in messages.

    Raises: ConfigError with line and column if the text is not YAML, or gives a key twice.
    """
    loader = _UniqueKeyLoader(text)
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML. {error}") from error
    finally:
        loader.dispose()


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML file that holds a mapping.

    Raises: ConfigError if the file is missing, is not YAML, or holds something else.
    """
    path = Path(path)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        siblings = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        hint = f" Closest: {closest(str(path), siblings)}." if siblings else ""
        raise ConfigError(f"{path}: cannot be read ({error}).{hint}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found {type(values).__name__}, expected a mapping of sections.")
    return values


def load_source(path: str | Path, overrides: Sequence[str] = ()) -> Source:
    """Read a YAML file, the chain of its `base:` files and the overrides (`section.key=value`)."""
    return apply_overrides(_load_with_base(Path(path), chain=()), overrides)


def _load_with_base(path: Path, chain: tuple[Path, ...]) -> Source:
    if path.resolve() in chain:
        raise ConfigError(f"{path}: `base:` leads back to a file that is being read: {' -> '.join(map(str, chain))}.")
    values = read_yaml(path)
    base = values.pop("base", None)
    source = Source(str(path), {})
    if base is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{path}: base: found {base!r}, expected the path of a YAML file.")
        source = _load_with_base(path.parent / base, (*chain, path.resolve()))
        source.path = str(path)
    merge(source, values, str(path))
    return source


def merge(source: Source, values: Mapping[str, Any], origin: str) -> None:
    """Lay `values` over a source: mappings are merged key by key, everything else is replaced."""

    def walk(target: dict[str, Any], update: Mapping[str, Any], prefix: KeyPath) -> None:
        for key, value in update.items():
            here = (*prefix, str(key))
            if isinstance(value, dict) and isinstance(target.get(key), dict):
                walk(target[key], value, here)
            else:
                target[key] = value
                _mark(value, here)

    def _mark(value: Any, here: KeyPath) -> None:
        source.origins[here] = origin
        if isinstance(value, dict):
            for key, child in value.items():
                _mark(child, (*here, str(key)))

    walk(source.values, values, ())


def apply_overrides(source: Source, overrides: Sequence[str]) -> Source:
    """Lay `section.key=value` overrides over a source; values are read as YAML.

    Raises: ConfigError for an override that is not of that form.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {override}: expected section.key=value, e.g. --set training.batch_size=64.")
        nested: Any = parse_yaml(text, f"--set {path}")
        for key in reversed(keys):
            nested = {key: nested}
        merge(source, nested, "--set")
    return source


# --- checking ------------------------------------------------------------------------------------------------


def build(model: type[Model], source: Source, relations: Iterable[Relation] = ()) -> Model:
    """Validate a source.

    Raises: ConfigError that lists every problem found.
    """
    config, problems = validate(model, source.values, relations)
    if problems:
        raise ConfigError(report(source, problems))
    assert config is not None
    return config


def validate(
    model: type[Model], values: Mapping[str, Any], relations: Iterable[Relation] = ()
) -> tuple[Model | None, list[Problem]]:
    """Validate values; returns the model (None if there are problems) and all problems."""
    bad: dict[KeyPath, str] = {}
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        for item in error.errors():
            key, message = _explain(model, item)
            bad.setdefault(key, message)
        config = _construct(model, values, set(bad))
    problems = [Problem(".".join(key), message) for key, message in bad.items()]
    for relation in relations:
        if any(_overlaps(tuple(key.split(".")), spoilt) for key in relation.keys for spoilt in bad):
            continue
        message = relation.check(config)
        if message:
            problems.append(Problem(relation.keys[0], message))
    return (None if problems else config), problems


def report(source: Source, problems: Sequence[Problem]) -> str:
    """All problems as one text, each with the file that gave the key."""
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    lines = [f"{source.path}: {count}"]
    for problem in problems:
        origin = source.origin(tuple(problem.key.split(".")))
        where = "" if origin == source.path else f" (given in {origin})"
        lines.append(f"  {problem}{where}")
    return "\n".join(lines)


def _overlaps(key: KeyPath, spoilt: KeyPath) -> bool:
    shared = min(len(key), len(spoilt))
    return key[:shared] == spoilt[:shared]


def _section_class(annotation: Any) -> type[StrictModel] | None:
    """The section model inside an annotation such as `Section | None`, or None."""
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        return annotation
    for argument in typing.get_args(annotation):
        if found := _section_class(argument):
            return found
    return None


def _fields_at(model: type[StrictModel], key: Sequence[str]) -> tuple[list[str], Any]:
    """Names that are valid beside the last part of `key`, and the annotation of that part if it is one of them."""
    current: type[StrictModel] | None = model
    for part in key[:-1]:
        if current is None or part not in current.model_fields:
            return [], None
        current = _section_class(current.model_fields[part].annotation)
    if current is None:
        return [], None
    info = current.model_fields.get(key[-1]) if key else None
    return list(current.model_fields), info.annotation if info else None


def _explain(model: type[StrictModel], item: Mapping[str, Any]) -> tuple[KeyPath, str]:
    """One of pydantic's errors as (key path, sentence)."""
    key: list[str] = []
    for part in item["loc"]:
        names, _ = _fields_at(model, [*key, str(part)])
        if not names and key:  # a place inside a list, dict or union: report the key that holds it
            break
        key.append(str(part))
    inside = ".".join(str(part) for part in item["loc"][len(key) :] if not _is_union_tag(part))
    where = f" (item {inside})" if inside else ""
    if item["type"] == "extra_forbidden":
        names, _ = _fields_at(model, key)
        return tuple(key), f"unknown key. Closest: {closest(key[-1], names)}."
    if item["type"] == "missing":
        return tuple(key), "missing. This key has no default; give it a value."
    found = repr(item["input"])
    found = found if len(found) <= 80 else found[:77] + "..."
    expected = item["msg"][:1].lower() + item["msg"][1:]
    return tuple(key), f"found {found}{where}, expected: {expected.removeprefix('value error, ')}."


def _is_union_tag(part: Any) -> bool:
    return isinstance(part, str) and not part.replace("_", "").isalnum()


def _construct(model: type[Model], values: Mapping[str, Any], bad: set[KeyPath]) -> Model:
    """The model with its bad keys left at their defaults, so that relations between the good ones can be tested."""
    content: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        below = {key[1:] for key in bad if key[0] == name}
        section = _section_class(info.annotation)
        given = values.get(name, PydanticUndefined) if isinstance(values, Mapping) else PydanticUndefined
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        if () in below or given is PydanticUndefined:
            content[name] = default
        elif section is not None and isinstance(given, Mapping) and section in _direct(info.annotation):
            content[name] = _construct(section, given, below)
        elif below:
            content[name] = default
        else:
            content[name] = TypeAdapter(typing.Annotated[info.annotation, info]).validate_python(given)
    return model.model_construct(**content)


def _direct(annotation: Any) -> tuple[Any, ...]:
    """The annotation itself, and the members of a union; not what a list or dict holds."""
    origin = typing.get_origin(annotation)
    if origin in (list, tuple, dict, set):
        return ()
    return (annotation, *typing.get_args(annotation))
