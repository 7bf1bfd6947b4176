"""Key lists: the three formats, and pickles that are anything else."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from data.keys import read_key_list, write_key_list

KEYS = ["ILSVRC2012_val_00016543", "n01440764_10026", "ordner/größe"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_list_of_strings_is_read(tmp_path, protocol):
    keys = [*KEYS, KEYS[0]] * 700  # several batches of APPENDS, and strings that come again from the memo
    (tmp_path / "keys.pkl").write_bytes(pickle.dumps(keys, protocol))
    assert read_key_list(tmp_path / "keys.pkl") == keys


class _Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_malicious_pickle_is_refused_and_not_run(tmp_path, protocol):
    payload = [*KEYS, _Malicious(tmp_path / "ran")]
    (tmp_path / "keys.pkl").write_bytes(pickle.dumps(payload, protocol))
    opcode = "STACK_GLOBAL" if protocol >= 4 else "GLOBAL"
    with pytest.raises(DataError, match=rf"keys\.pkl: refused: opcode {opcode} at byte \d+"):
        read_key_list(tmp_path / "keys.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [{"a": 1}, ("a",), ["a", 1], {"a"}, ["a", None], b"a"])
def test_pickle_of_anything_else_is_refused(tmp_path, value):
    (tmp_path / "keys.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(DataError, match="refused: opcode"):
        read_key_list(tmp_path / "keys.pkl")


@pytest.mark.parametrize("value", ["a", [["a"]]])
def test_pickle_that_is_no_list_of_strings_is_refused(tmp_path, value):
    (tmp_path / "keys.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(DataError, match="expected a list of strings"):
        read_key_list(tmp_path / "keys.pkl")


@given(st.binary(max_size=60))
def test_random_bytes_are_never_more_than_an_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("keys") / "keys.pkl"
    path.write_bytes(content)
    try:
        keys = read_key_list(path)
    except DataError:
        return
    assert all(isinstance(key, str) for key in keys)


def test_cut_pickle_is_refused(tmp_path):
    (tmp_path / "keys.pkl").write_bytes(pickle.dumps(KEYS)[:-1])
    with pytest.raises(DataError, match="not a well-formed pickle"):
        read_key_list(tmp_path / "keys.pkl")


@pytest.mark.parametrize("name", ["keys.txt", "keys.json"])
def test_written_list_is_read_back(tmp_path, name):
    write_key_list(tmp_path / name, KEYS)
    assert read_key_list(tmp_path / name) == KEYS


def test_text_list_may_have_blank_lines_and_windows_line_ends(tmp_path):
    (tmp_path / "keys.txt").write_bytes(b"\xef\xbb\xbfa\r\n\r\nb c\n")
    assert read_key_list(tmp_path / "keys.txt") == ["a", "b c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("keys.json", b"{", "not valid JSON"),
        ("keys.json", json.dumps({"a": 1}).encode(), "found dict, expected a list of strings"),
        ("keys.json", b'["a", 1]', "found a list with int"),
        ("keys.txt", b"\xff\xfe", "not a text in UTF-8"),
        ("keys.csv", b"a", "found suffix '.csv'"),
    ],
)
def test_wrong_content_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_key_list(tmp_path / name)


def test_missing_list_names_the_scanner(tmp_path):
    with pytest.raises(DataError, match=r"keys\.pkl: .*imagenet_info/scan_keys\.py --data-path .* --min-side 256"):
        read_key_list(tmp_path / "keys.pkl")
