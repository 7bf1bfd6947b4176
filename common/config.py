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
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined

from common.errors import ConfigError
from common.registry import closest

KeyPath = tuple[str, ...]


class StrictModel(BaseModel):
    """A frozen section of a configuration; a key that it does not declare is an error.

    Types are strict, so that nothing is guessed: `true` is no number, "64" no integer; only an integer may stand
    for a float. Neither `.nan` nor `.inf` is a number here.

    Attributes:
        ELSEWHERE: keys that somebody may look for here, and what to do instead.
    """

    ELSEWHERE: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, strict=True, allow_inf_nan=False)


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
    """The raw mapping of a configuration, and where its keys came from.

    Args:
        path: the file that was loaded.
        values: nested mapping of sections and keys.
        origins: the file (or "--set") that gave a key.
        names: dotted key -> its name in the file, where the file was translated from another layout.
    """

    path: str
    values: dict[str, Any]
    origins: dict[KeyPath, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

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
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _construct_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict:
    given = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key must be plain text", problem_mark=key_node.start_mark)
        if (key_node.tag, key_node.value) in given:
            problem = f"key {key_node.value!r} is given twice; keep one of them"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
        given.add((key_node.tag, key_node.value))
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


_UniqueKeyLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def parse_yaml(text: str, name: str) -> Any:
    """Parse a YAML text; `name` stands for it in messages.

    Raises: ConfigError with line and column if the text is not YAML, or gives a key twice.
    """
    try:
        return yaml.load(text, _UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = error.problem or error.context or "not valid YAML"
        hint = " (indent with spaces, not with tabs)" if "\\t" in problem else ""
        raise ConfigError(f"{name}: {where}{problem}{hint}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{name}: not valid YAML ({str(error) or type(error).__name__}).".replace("\n", " ")
        ) from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML file that holds a mapping.

    Raises: ConfigError if the file is missing, is not YAML, or holds something else.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, expected a YAML file.")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        siblings = [str(p) for p in path.parent.glob("*.yaml")]
        hint = f" Closest: {closest(str(path), siblings)}." if siblings else ""
        raise ConfigError(f"{path}: does not exist.{hint}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error}).") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    values = parse_yaml(text, str(path))
    if values is None:
        raise ConfigError(f"{path}: is empty, expected a mapping of sections.")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found {_KINDS.get(type(values), 'one value')}, expected a mapping of sections.")
    return values


_KINDS = {list: "a list", str: "plain text"}


def load_source(path: str | Path, overrides: Sequence[str] = ()) -> Source:
    """Read a YAML file, the chain of its `base:` files and the overrides (`section.key=value`)."""
    return apply_overrides(_load_with_base(Path(path), chain=()), overrides)


def _load_with_base(path: Path, chain: tuple[Path, ...]) -> Source:
    if path.resolve() in chain:
        names = " -> ".join(file.name for file in (*chain, path))
        raise ConfigError(f"{chain[-1]}: `base:` leads back to a file that is being read: {names}.")
    values = read_yaml(path)
    source = Source(str(path), {})
    if "base" in values:
        base = values.pop("base")
        if not isinstance(base, str):
            raise ConfigError(f"{path}: base: found {base!r}, expected the path of a YAML file.")
        base_path = path.parent / base
        if not base_path.is_file():
            raise ConfigError(f"{path}: base: found {base!r}, but {base_path} is not a file.")
        source = _load_with_base(base_path, (*chain, path.resolve()))
        source.path = str(path)
    merge(source, values, str(path))
    return source


def merge(source: Source, values: Mapping[str, Any], origin: str) -> None:
    """Lay `values` over a source: mappings are merged key by key, everything else is replaced."""

    def walk(target: dict[str, Any], update: Mapping[str, Any], prefix: KeyPath) -> None:
        spelling = {str(key): key for key in target}  # --set knows only text: its "128" is the file's 128
        for key, value in update.items():
            here = (*prefix, str(key))
            key = spelling.get(str(key), key)
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
    """Lay `section.key=value` overrides over a source; values are read as YAML, and replace what was there.

    Raises: ConfigError for an override that is not of that form.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {override}: expected section.key=value, e.g. --set training.batch_size=64.")
        value = parse_yaml(text, f"--set {path}")
        if isinstance(value, Mapping):
            merge(source, _nested(keys, None), "--set")  # else it would only be laid over the mapping that is there
        merge(source, _nested(keys, value), "--set")
    return source


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


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
    faults = _Faults()
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        faults = _faults(model, error)
        config = _construct(model, values, faults.spoilt)
    problems = [Problem(".".join(key), message) for key, message in faults.messages.items()]
    problems += violations(config, relations, faults.spoilt)
    return (None if problems else config), problems


def violations(config: StrictModel, relations: Iterable[Relation], spoilt: Iterable[KeyPath] = ()) -> list[Problem]:
    """The relations that a configuration breaks, leaving out those that read a `spoilt` key."""
    spoilt = list(spoilt)
    problems = []
    for relation in relations:
        if any(_overlaps(tuple(key.split(".")), key_path) for key in relation.keys for key_path in spoilt):
            continue
        if message := relation.check(config):
            problems.append(Problem(relation.keys[0], message))
    return problems


def require_consistent(config: StrictModel, relations: Iterable[Relation]) -> None:
    """Raise ConfigError that lists the relations which a configuration breaks."""
    if problems := violations(config, relations):
        raise ConfigError("\n".join(map(str, problems)))


def in_section(name: str, relations: Iterable[Relation]) -> list[Relation]:
    """The same relations in a configuration that has what they are about as its section `name`."""

    def moved(relation: Relation) -> Relation:
        keys = tuple(f"{name}.{key}" for key in relation.keys)
        return Relation(keys, lambda whole: relation.check(getattr(whole, name)))

    return [moved(relation) for relation in relations]


def report(source: Source, problems: Sequence[Problem]) -> str:
    """All problems as one text, each with the key's name in a translated file, and the file that gave it."""
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    lines = [f"{source.path}: {count}"]
    for problem in problems:
        origin = source.origin(tuple(problem.key.split(".")))
        where = "" if origin == source.path else f" (given in {_beside(origin, source.path)})"
        name = source.names.get(problem.key)
        key = problem.key if name is None or origin == "--set" else f"{problem.key} ({name})"
        lines.append(f"  {Problem(key, problem.message)}{where}")
    return "\n".join(lines)


def _beside(origin: str, path: str) -> str:
    """A file as seen from another one: its name alone if they share a folder."""
    return Path(origin).name if Path(origin).parent == Path(path).parent else origin


def _overlaps(key: KeyPath, spoilt: KeyPath) -> bool:
    shared = min(len(key), len(spoilt))
    return key[:shared] == spoilt[:shared]


def section_class(annotation: Any) -> type[StrictModel] | None:
    """The section model inside an annotation such as `Section | None`, or None."""
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        return annotation
    for argument in typing.get_args(annotation):
        if found := section_class(argument):
            return found
    return None


def _fields_at(model: type[StrictModel], key: Sequence[str]) -> tuple[list[str], Any]:
    """Names that are valid beside the last part of `key`, and the annotation of that part if it is one of them.

    In a mapping of sections, such as `dict[str, Section]`, any name is valid.
    """
    current: type[StrictModel] | None = model
    holder: Any = None  # the annotation of a mapping whose name comes next
    for part in key[:-1]:
        if holder is not None:
            holder = None
            continue
        if current is None or part not in current.model_fields:
            return [], None
        annotation = current.model_fields[part].annotation
        current = section_class(annotation)
        holder = annotation if current is not None and current not in _direct(annotation) else None
    if holder is not None:
        return [key[-1]], holder
    if current is None:
        return [], None
    info = current.model_fields.get(key[-1]) if key else None
    return list(current.model_fields), info.annotation if info else None


def _places(model: type[StrictModel], name: str, prefix: KeyPath = ()) -> list[str]:
    """Dotted paths of every key called `name`."""
    found = []
    for key, info in model.model_fields.items():
        if key == name:
            found.append(".".join((*prefix, key)))
        if section := section_class(info.annotation):
            found += _places(section, name, (*prefix, key))
    return found


@dataclass
class _Faults:
    """What pydantic found.

    Args:
        messages: key -> what is wrong with it.
        spoilt: keys whose value is not known: the wrong ones, and those that a misspelt key was meant to be.
    """

    messages: dict[KeyPath, str] = field(default_factory=dict)
    spoilt: set[KeyPath] = field(default_factory=set)


def _faults(model: type[StrictModel], error: ValidationError) -> _Faults:
    faults = _Faults()
    missing: set[KeyPath] = set()
    meant: set[KeyPath] = set()
    for item in error.errors():
        key = _key_of(model, item["loc"])
        if item["type"] == "extra_forbidden" and key[-1] in _elsewhere(model, key):
            faults.messages[key] = _elsewhere(model, key)[key[-1]]
        elif item["type"] == "extra_forbidden":
            near = _nearest_key(model, key)
            meant.add(tuple(near.split(".")) if "." in near else (*key[:-1], near))
            faults.messages[key] = f"unknown key. Closest: {near}."
        elif item["type"] == "missing" and len(key) == len(item["loc"]):
            missing.add(key)
            faults.messages[key] = "missing. It has no default; give it a value."
        else:
            faults.messages.setdefault(key, _explain(model, key, item))
    faults.spoilt = {*faults.messages, *meant}
    for key in missing & meant:  # a required key that is misspelt is one mistake, not two
        del faults.messages[key]
    return faults


def _elsewhere(model: type[StrictModel], key: KeyPath) -> Mapping[str, str]:
    """What the section of an unknown key says about keys that it does not have."""
    section: type[StrictModel] | None = model
    if len(key) > 1:
        section = section_class(_fields_at(model, key[:-1])[1])
    return section.ELSEWHERE if section else {}


def _key_of(model: type[StrictModel], location: Sequence[int | str]) -> KeyPath:
    """The key that an error belongs to; an item of a list or mapping belongs to the key that holds it."""
    key: list[str] = []
    for part in location:
        names, _ = _fields_at(model, [*key, str(part)])
        if not names and key:
            break
        key.append(str(part))
    return tuple(key)


def _nearest_key(model: type[StrictModel], key: KeyPath) -> str:
    """The closest sibling of an unknown key; or the dotted path of the only key of that very name elsewhere."""
    places = _places(model, key[-1])
    if len(places) == 1:
        return places[0]
    names, _ = _fields_at(model, key)
    return closest(key[-1], names) or ""


def _explain(model: type[StrictModel], key: KeyPath, item: Mapping[str, Any]) -> str:
    """A wrong value in words: what was found, and what was expected."""
    inside = [str(part) for part in item["loc"][len(key) :] if part != "[key]"]
    where = f" (item {'.'.join(inside)})" if inside else ""
    value, kind = item["input"], item["type"]
    if kind == "invalid_key":
        return "found a key that is not text, expected the name of a key."
    if kind == "model_type":
        _, annotation = _fields_at(model, key)
        section = section_class(annotation)
        keys = ", ".join(section.model_fields) if section else ""
        return f"found {_show(value)}, expected a section, that is a mapping of some of the keys {keys}."
    if kind == "too_short":
        expected = f"at least {item['ctx']['min_length']}"
        return f"found {_show(value)}, expected {expected} item{'s' if item['ctx']['min_length'] > 1 else ''}."
    expected = _EXPECTED.get(kind) or item["msg"].removeprefix("Input should be ")
    if kind.startswith(("greater_than", "less_than")):
        expected = f"a value {expected}"
    if isinstance(value, str) and kind in ("int_type", "float_type") and value.lstrip("+-").replace(".", "").isdigit():
        expected += " without quotes"
    return f"found {_show(value)}{where}, expected {expected[:1].lower() + expected[1:]}."


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "missing": "one more item",
}


def _show(value: Any) -> str:
    """A value as it stands in YAML, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _construct(model: type[Model], values: Mapping[str, Any], bad: set[KeyPath]) -> Model:
    """The model with its bad keys left at their defaults, so that relations between the good ones can be tested."""
    content: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        below = {key[1:] for key in bad if key[0] == name}
        section = section_class(info.annotation)
        given = values.get(name, PydanticUndefined) if isinstance(values, Mapping) else PydanticUndefined
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        if () in below or given is PydanticUndefined:
            content[name] = default
        elif section is not None and isinstance(given, Mapping) and section in _direct(info.annotation):
            content[name] = _construct(section, given, below) if below else section.model_validate(given)
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
