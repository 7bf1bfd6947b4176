"""What holds for every file of the repository: safe loading, cheap start-up, live registries, honest documents."""

from __future__ import annotations

import ast
import copy
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from common.config import load_source, merge, parse_yaml
from common.registry import Registry, import_object
from configs.schema import check

ROOT = Path(__file__).parents[1]
PACKAGES = ("common", "configs", "networks", "losses", "data", "trainer", "evaluation")
HEAVY_LIBRARIES = (
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "lpips",
    "torch_fidelity",
    "wandb",
    "sklearn",
    "skimage",
)
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/adversarial.md",
    "docs/alignment.md",
    "docs/architecture.md",
    "docs/diffusion.md",
    "docs/encoders.md",
    "docs/evaluation.md",
    "docs/latents.md",
    "docs/performance.md",
    "docs/scaling.md",
    "docs/vfmtok.md",
)


@cache
def tracked_files() -> tuple[Path, ...]:
    """Files that git tracks and that are still there, relative to the root."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return tuple(Path(name) for name in listing.stdout.split("\0") if name and (ROOT / name).is_file())


def sources(*, with_tests: bool = True) -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".py" and (with_tests or path.parts[0] != "tests")]


def commands() -> list[str]:
    """Scripts that a user starts: train.py and what lies under tools/ and imagenet_info/."""
    scripts = [ROOT / "train.py", *(ROOT / "tools").rglob("*.py"), *(ROOT / "imagenet_info").rglob("*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in scripts if path.is_file())


def config_modules() -> list[str]:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    names = [str(file.relative_to(ROOT).with_suffix("")).replace("/", ".") for file in files]
    return sorted(name for name in names if name.rpartition(".")[2] in ("config", "schema"))


# --- safe loading ----------------------------------------------------------------------------------------------------


UNPICKLERS = ("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")


def unsafe_calls(tree: ast.AST) -> Iterator[str]:
    """Calls and imports through which a file from elsewhere could run code."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    safe_loaders = {c.name for c in classes if "yaml.SafeLoader" in map(ast.unparse, c.bases)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            yield from (f"line {node.lineno}: import {m}" for m in modules if m.split(".")[0] in UNPICKLERS)
            if modules[0] in ("torch", "numpy", "yaml"):  # under another name, the rules below would not know them
                loaders = [name.name for name in node.names if "load" in name.name]
                yield from (f"line {node.lineno}: from {modules[0]} import {name}" for name in loaders)
        elif isinstance(node, ast.Call):
            arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            call = ast.unparse(node.func)
            if (
                (call == "torch.load" and arguments.get("weights_only") != "True")
                or (call in ("np.load", "numpy.load") and arguments.get("allow_pickle", "False") != "False")
                or (call in ("np.load", "numpy.load") and len(node.args) > 2)
                or (call == "yaml.load" and ast.unparse(node.args[-1]) not in safe_loaders)
                or call in ("yaml.unsafe_load", "yaml.full_load", "eval", "exec")
            ):
                yield f"line {node.lineno}: {ast.unparse(node)}"


def test_no_file_from_elsewhere_can_run_code():
    found = {
        str(path): calls
        for path in sources(with_tests=False)
        if (calls := list(unsafe_calls(ast.parse((ROOT / path).read_text(encoding="utf-8")))))
    }
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "from torch import load",
        "np.load(f, allow_pickle=True)",
        "np.load(f, None, True)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "yaml.load(f, Loader)",
        "yaml.load(f, Loader=yaml.Loader)",
    ],
)
def test_unsafe_line_would_be_found(line):
    assert list(unsafe_calls(ast.parse(line)))


# --- cheap start-up --------------------------------------------------------------------------------------------------

# Each target runs in a fork of one small interpreter: a module path is imported, a script is asked for its help.
PROBE = """
import importlib, json, os, runpy, sys
heavy, targets = json.loads(sys.argv[1])
for target in targets:
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        code, error = 0, ""
        sys.stdout = open(os.devnull, "w")
        try:
            if target.endswith(".py"):
                sys.argv = [target, "--help"]
                sys.path[0] = os.path.dirname(os.path.abspath(target))
                runpy.run_path(target, run_name="__main__")
                error = "did not stop after --help"
            else:
                importlib.import_module(target)
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException as problem:
            error = repr(problem)
        loaded = [name for name in heavy if name in sys.modules]
        os.write(writer, json.dumps({"code": code, "error": error, "loaded": loaded}).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        print(json.dumps([target, json.loads(pipe.read())]))
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def start_up() -> dict[str, Any]:
    """What each command's `--help` and each config module's import did, by name."""
    targets = json.dumps([HEAVY_LIBRARIES, [*commands(), *config_modules()]])
    probe = subprocess.run([sys.executable, "-c", PROBE, targets], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert probe.returncode == 0, probe.stderr
    return dict(json.loads(line) for line in probe.stdout.splitlines())


@pytest.mark.parametrize("target", [*commands(), *config_modules()])
def test_help_and_configuration_cost_no_heavy_import(start_up, target):
    assert start_up[target] == {"code": 0, "error": "", "loaded": []}


# --- registries and modules ------------------------------------------------------------------------------------------


def modules() -> list[str]:
    found = []
    for package in PACKAGES:
        folder = ROOT / package
        found += [package, *(m.name for m in pkgutil.walk_packages([str(folder)], prefix=f"{package}."))]
    return found


def targets_of(registry: Registry) -> Iterator[str]:
    """The `module:Name` strings in a registry's entries; an entry whose target is None names what is not built."""
    for entry in registry.values():
        target = entry if isinstance(entry, str) else getattr(entry, "target", None)
        if isinstance(target, str) and ":" in target:
            yield target


@pytest.mark.parametrize("name", modules())
def test_module_imports_and_its_registries_lead_somewhere(name):
    for value in list(vars(importlib.import_module(name)).values()):  # following a registry imports submodules
        if isinstance(value, Registry):
            for target in targets_of(value):
                assert callable(import_object(target)), f"{value.kind}: {target}"


def test_libraries_import_no_command():
    for path in sources():
        if path.parts[0] not in PACKAGES:
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [n for n in names if n.split(".")[0] in ("train", "tools", "imagenet_info")], f"{path}: {names}"


# --- files and documents ---------------------------------------------------------------------------------------------


def test_no_file_names_a_place_on_somebodys_machine():
    place = re.compile(r"(?<![\w.~>}])/(?:work|root|home|Users)/[\w.]|\.\./shared")
    found = []
    for path in tracked_files():
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path}: {match.group()}" for match in place.finditer(text) if path.name != Path(__file__).name]
    assert found == []


def test_no_tracked_file_is_large():
    assert [str(path) for path in tracked_files() if (ROOT / path).stat().st_size > 2_000_000] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_names_only_files_that_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) + re.findall(r'(?:src|href)="([^"#:]+)"', text)
    top = "|".join((*PACKAGES, "tools", "imagenet_info", "docs", "tests"))
    named = re.findall(rf"(?<![\w./-])((?:{top})/[\w./-]+\.(?:py|sh|yaml|md|svg))(?![\w/])", text)
    links = [(Path(document).parent / link) for link in links]
    missing = {str(path) for path in [*links, *map(Path, named)] if not (ROOT / path).exists()}
    assert missing == set()


def test_configurations_in_the_readme_are_valid():
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    first = parse_yaml(blocks[0], "README.md")
    source = load_source(ROOT / first.pop("base"))
    merge(source, first, "README.md")
    check(source)
    for block in blocks[1:]:
        variant = copy.deepcopy(source)
        merge(variant, parse_yaml(block, "README.md"), "README.md")
        check(variant)
