"""Shards become a flat folder, byte for byte; what is wrong with them is counted or stops the call before it writes."""

from __future__ import annotations

import io
import json
import runpy
import sys
import tarfile
from pathlib import Path

import pytest

from common.errors import DataError
from data.config import DataConfig
from data.extract_shards import extract_shards
from data.sources import build_source

TOOL = Path(__file__).parents[2] / "tools" / "reconstruct" / "extract.py"
MEMBERS = {
    "00.tar": {"train/a.jpg": b"A" * 700, "train/a.cls": b"3", "b.PNG": b"B", "b.cls": b"0", "b.json": b"{}"},
    "more/01.tar": {"c.webp": b"C", "c.cls": b"7", "d.jpeg": b"D" * 90, "d.cls": b"1"},
}
FILES = {"a.jpg": b"A" * 700, "b.png": b"B", "c.webp": b"C", "d.jpeg": b"D" * 90}


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path) -> Path:
    for name, members in MEMBERS.items():
        write_tar(tmp_path / "shards" / name, members)
    return tmp_path / "shards"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_image_is_copied_byte_for_byte(shards, tmp_path) -> None:
    report = extract_shards(shards, tmp_path / "out")
    assert contents(tmp_path / "out") == FILES
    assert (report.shards, report.written, report.kept, report.problems) == (2, 4, 0, [])


def test_an_interrupted_call_is_completed_by_the_next(shards, tmp_path) -> None:
    extract_shards(shards, tmp_path / "out")
    (tmp_path / "out" / "c.webp").unlink()
    report = extract_shards(shards, tmp_path / "out")
    assert (report.written, report.kept) == (1, 3)
    assert contents(tmp_path / "out") == FILES


def test_a_file_of_another_size_is_not_taken_for_the_image(shards, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "d.jpeg").write_bytes(b"D" * 40)
    with pytest.raises(DataError, match=r"d\.jpeg: found 40 bytes, expected the 90 of d in .*01\.tar; remove it"):
        extract_shards(shards, tmp_path / "out")
    assert contents(tmp_path / "out") == {"d.jpeg": b"D" * 40}


def test_labels_make_the_folder_a_labelled_data_set(shards, tmp_path) -> None:
    report = extract_shards(shards, tmp_path / "out", labels_json=tmp_path / "out" / "dataset.json")
    assert report.labelled == 4
    source = build_source(DataConfig(source="folder", path=str(tmp_path / "out"), label_type="cls2id"), seed=0)
    assert {source.key(i): source.label(i) for i in range(4)} == {"a.jpg": 3, "b.png": 0, "c.webp": 7, "d.jpeg": 1}


def test_missing_and_bad_labels_are_counted(shards, tmp_path) -> None:
    write_tar(shards / "02.tar", {"e.jpg": b"E", "f.jpg": b"F", "f.cls": b"cat"})
    report = extract_shards(shards, tmp_path / "out", labels_json=tmp_path / "labels.json")
    assert [(problem.key, problem.kind) for problem in report.problems] == [("e", "no label"), ("f", "bad label")]
    assert (report.written, report.labelled) == (6, 4)
    assert ["f.jpg", 0] not in json.loads((tmp_path / "labels.json").read_text())["labels"]


def test_equal_names_in_two_shards_stop_the_call_before_it_writes(shards, tmp_path) -> None:
    write_tar(shards / "02.tar", {"other/a.png": b"another"})
    with pytest.raises(DataError, match=r"train/a of .*00\.tar and other/a of .*02\.tar would both be called a "):
        extract_shards(shards, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_whole_samples_of_a_truncated_shard_are_extracted_and_the_cut_one_is_counted(shards, tmp_path) -> None:
    cut = shards / "00.tar"
    cut.write_bytes(cut.read_bytes()[: 512 + 300])
    report = extract_shards(shards, tmp_path / "out")
    assert contents(tmp_path / "out") == {name: FILES[name] for name in ("c.webp", "d.jpeg")}
    assert [(problem.shard, problem.kind) for problem in report.problems] == [("00.tar", "truncated shard")]


def test_the_command_says_what_it_did_and_what_it_could_not(shards, tmp_path, monkeypatch, capsys) -> None:
    write_tar(shards / "02.tar", {"e.txt": b"no image"})
    arguments = ["extract.py", "--input-dir", str(shards), "--output-dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    assert runpy.run_path(str(TOOL))["main"]() == 1
    printed = capsys.readouterr()
    assert "4 images written, 0 kept, from 3 shards" in printed.out
    assert "not extracted: 02.tar: no image (1)" in printed.err


@pytest.mark.parametrize(("name", "message"), [("nothing", "does not exist"), ("empty", r"no \*\.tar shard found")])
def test_nothing_to_extract_is_an_error(tmp_path, monkeypatch, name, message) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"{name}: {message}"):
        extract_shards(tmp_path / name, tmp_path / "out")


def test_the_command_ends_with_2_if_there_is_nothing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["extract.py", "--input-dir", str(tmp_path), "--output-dir", str(tmp_path / "o")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err
