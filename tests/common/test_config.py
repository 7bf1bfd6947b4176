"""The YAML loader, the merging of files and overrides, and the sentences for what is wrong."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field, PositiveFloat, PositiveInt

from common.config import Relation, StrictModel, apply_overrides, build, load_source, parse_yaml, validate
from common.errors import ConfigError


class Optimizer(StrictModel):
    lr: PositiveFloat = 1e-4
    betas: tuple[float, float] = Field((0.0, 0.99), strict=False)


class Training(StrictModel):
    batch_size: PositiveInt = 4
    fused: bool = False
    mode: Literal["all", "decoder"] = "all"
    layers: list[int] = Field([0], min_length=1)
    optimizer: Optimizer = Optimizer()


class Experiment(StrictModel):
    run_dir: str
    training: Training
    extra: Training | None = None


DIVISIBLE = Relation(
    ("training.batch_size",), lambda c: f"found {c.training.batch_size}, odd." if c.training.batch_size % 2 else None
)


def problems_of(values: dict, relations=()) -> dict[str, str]:
    _, problems = validate(Experiment, values, relations)
    return {problem.key: problem.message for problem in problems}


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


# --- reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "1E-4", "+1e-04"])
def test_exponents_are_numbers_without_a_dot_too(text):
    assert parse_yaml(f"lr: {text}", "x") == {"lr": 1e-4}
    assert parse_yaml("a: .5e3", "x") == {"a": 500.0}


@pytest.mark.parametrize("text", ["1e", "e-4", "v1e5", "1e-4x"])
def test_other_words_with_an_e_stay_text(text):
    assert parse_yaml(f"name: {text}", "x") == {"name": text}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run_dir: a\ntraining:\n  lr: 1\n  lr: 2\n", "line 4, column 3: key 'lr' is given twice; keep one of them."),
        ("a:\n\tb: 1\n", "line 2, column 1: found character '\\t' that cannot start any token (indent with spaces"),
        ("a: [1, 2\nb: 3\n", "line 2, column 2: expected ',' or ']', but got ':'"),
        ("? [a]\n: 1\n", "line 1, column 3: a key must be plain text."),
        ("a: !!python/object:os.system {}\n", "could not determine a constructor for the tag"),
        ("a: 1\n---\nb: 2\n", "but found another document"),
        ("a: \x00\n", "not valid YAML"),
        ("a: 2020-99-99\n", "not valid YAML (month must be in 1..12)"),
        ("", "is empty, expected a mapping of sections."),
        ("# only a comment\n", "is empty, expected a mapping of sections."),
        ("- a\n- b\n", "found a list, expected a mapping of sections."),
        ("hello\n", "found plain text, expected a mapping of sections."),
        ("5\n", "found one value, expected a mapping of sections."),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_in_one_sentence(tmp_path, text, message):
    path = write(tmp_path / "c.yaml", text)
    with pytest.raises(ConfigError) as error:
        load_source(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_path_that_is_no_file_is_refused(tmp_path):
    write(tmp_path / "stage_one.yaml", "a: 1")
    with pytest.raises(ConfigError, match=r"is a folder, expected a YAML file\."):
        load_source(tmp_path)
    with pytest.raises(ConfigError, match=r"stage_on\.yaml: does not exist\. Closest: .*stage_one\.yaml\."):
        load_source(tmp_path / "stage_on.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match=r"is not UTF-8 text"):
        load_source(tmp_path / "latin.yaml")


# --- base files and overrides ----------------------------------------------------------------------------------


def test_a_chain_of_bases_is_merged_key_by_key_and_lists_are_replaced(tmp_path):
    (tmp_path / "shared").mkdir()
    write(tmp_path / "shared/root.yaml", "run_dir: r\ntraining: {batch_size: 8, layers: [1, 2, 3]}\n")
    write(tmp_path / "shared/middle.yaml", "base: root.yaml\ntraining: {batch_size: 16}\n")
    leaf = write(tmp_path / "leaf.yaml", "base: shared/middle.yaml\ntraining: {layers: [5]}\n")
    source = load_source(leaf)
    assert source.values == {"run_dir": "r", "training": {"batch_size": 16, "layers": [5]}}
    assert source.origin(("training", "batch_size")).endswith("middle.yaml")
    assert source.origin(("run_dir",)).endswith("root.yaml")
    assert source.origin(("training", "layers")) == str(leaf)


def test_a_cycle_of_bases_is_refused(tmp_path):
    write(tmp_path / "a.yaml", "base: b.yaml\n")
    write(tmp_path / "b.yaml", "base: a.yaml\n")
    with pytest.raises(ConfigError, match=r"`base:` leads back .*: a\.yaml -> b\.yaml -> a\.yaml\."):
        load_source(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("base", "message"), [("gone.yaml", "is not a file"), ("5", "expected the path of"), ("", "expected the path of")]
)
def test_a_base_that_is_no_file_is_reported_with_the_file_that_names_it(tmp_path, base, message):
    path = write(tmp_path / "a.yaml", f"base: {base}\nrun_dir: r\n")
    with pytest.raises(ConfigError) as error:
        load_source(path)
    assert str(error.value).startswith(f"{path}: base: found ")
    assert message in str(error.value)


def test_overrides_are_read_as_yaml_and_win(tmp_path):
    path = write(tmp_path / "a.yaml", "run_dir: r\ntraining: {batch_size: 8, weights: {128: 1}}\n")
    overrides = ["training.layers=[1, 2]", "training.optimizer.lr=1e-5", "training.weights.128=0.5", "run_dir="]
    source = load_source(path, overrides)
    assert source.values == {
        "run_dir": None,
        "training": {"batch_size": 8, "weights": {128: 0.5}, "layers": [1, 2], "optimizer": {"lr": 1e-5}},
    }
    assert source.origin(("training", "layers")) == "--set"


def test_an_override_of_a_mapping_replaces_it(tmp_path):
    path = write(tmp_path / "a.yaml", "training: {batch_size: 8, weights: {128: 1, 64: 1}}\n")
    source = load_source(path, ["training.weights={32: 0.5}"])
    assert source.values == {"training": {"batch_size": 8, "weights": {32: 0.5}}}


@pytest.mark.parametrize("override", ["training.batch_size", "=5", ".a=5", "a..b=5"])
def test_a_malformed_override_shows_the_form(tmp_path, override):
    source = load_source(write(tmp_path / "a.yaml", "run_dir: r\n"))
    with pytest.raises(ConfigError, match=r"expected section\.key=value"):
        apply_overrides(source, [override])


def test_the_report_names_the_file_of_each_key(tmp_path):
    write(tmp_path / "base.yaml", "run_dir: r\ntraining: {batch_size: many}\n")
    path = write(tmp_path / "a.yaml", "base: base.yaml\ntraining: {fused: 3}\n")
    with pytest.raises(ConfigError) as error:
        build(Experiment, load_source(path, ["training.mod=all"]))
    lines = str(error.value).splitlines()
    assert lines[0] == f"{path}: 3 problems"
    assert set(lines[1:]) == {
        "  training.batch_size: found 'many', expected a whole number. (given in base.yaml)",
        "  training.fused: found 3, expected true or false.",
        "  training.mod: unknown key. Closest: mode. (given in --set)",
    }


# --- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch_size", "64", "found '64', expected a whole number without quotes."),
        ("batch_size", True, "found true, expected a whole number."),
        ("batch_size", 64.0, "found 64.0, expected a whole number."),
        ("batch_size", None, "found null, expected a whole number."),
        ("batch_size", 0, "found 0, expected a value greater than 0."),
        ("batch_size", [4], "found [4], expected a whole number."),
        ("fused", "yes", "found 'yes', expected true or false."),
        ("fused", 1, "found 1, expected true or false."),
        ("mode", "decodr", "found 'decodr', expected 'all' or 'decoder'."),
        ("layers", 3, "found 3, expected a list."),
        ("layers", [], "found [], expected at least 1 item."),
        ("layers", [0, "a"], "found 'a' (item 1), expected a whole number."),
        ("optimizer", [1], "found [1], expected a section, that is a mapping of some of the keys lr, betas."),
        ("optimizer", None, "found null, expected a section, that is a mapping of some of the keys lr, betas."),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(key, value, message):
    assert problems_of({"run_dir": "r", "training": {key: value}}) == {f"training.{key}": message}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1e-4"])
def test_only_finite_numbers_are_numbers(value):
    assert list(problems_of({"run_dir": "r", "training": {"optimizer": {"lr": value}}})) == ["training.optimizer.lr"]


def test_an_integer_may_stand_for_a_float_and_a_list_for_a_pair():
    config, problems = validate(Experiment, {"run_dir": "r", "training": {"optimizer": {"lr": 1, "betas": [0, 1]}}})
    assert not problems
    assert config.training.optimizer == Optimizer(lr=1.0, betas=(0.0, 1.0))
    assert problems_of({"run_dir": "r", "training": {"optimizer": {"betas": [0]}}}) == {
        "training.optimizer.betas": "found [0] (item 1), expected one more item."
    }


@pytest.mark.parametrize("values", [{"training": {}}, {"run_dir": "r"}, {"run_dir": "r", "training": None}])
def test_what_is_required_must_be_there(values):
    problems = problems_of(values)
    assert len(problems) == 1
    assert "missing. It has no default" in str(problems) or "found null, expected a section" in str(problems)


def test_a_misspelt_required_key_is_one_problem():
    assert problems_of({"run_dri": "r", "training": {}}) == {"run_dri": "unknown key. Closest: run_dir."}


def test_a_key_that_is_not_text_is_refused():
    assert problems_of({"run_dir": "r", "training": {}, 5: 1}) == {
        "5": "found a key that is not text, expected the name of a key."
    }


def test_relations_are_tested_beside_wrong_values_but_not_on_them():
    assert problems_of({"run_dir": 5, "training": {"batch_size": 3, "fused": 1}}, [DIVISIBLE]) == {
        "run_dir": "found 5, expected text.",
        "training.fused": "found 1, expected true or false.",
        "training.batch_size": "found 3, odd.",
    }
    assert problems_of({"run_dir": "r", "training": {"batch_size": -3}}, [DIVISIBLE]) == {
        "training.batch_size": "found -3, expected a value greater than 0."
    }
