"""Sample sources: what they list, read and leave out."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest

from common.errors import DataError, NotBuiltError, UserError
from data.config import DataConfig
from data.skips import BadSample
from data.sources import SOURCES, PackedStrings, build_source
from tests.data.sample_files import encoded, pixels_of, sample, write_shards, write_tar


def open_source(path: Path, source: str = "webdataset", seed: int = 0, **options):
    return build_source(DataConfig(source=source, path=str(path), **options), seed)


def read_all(source) -> dict[str, tuple[str, bytes, int | str | None]]:
    samples = [source.read(index) for index in range(len(source))]
    return {raw.key: (raw.shard, raw.image, raw.label) for raw in samples}


def image_files(folder: Path, names: list[str], labels: dict[str, int | str] | None = None) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(pixels_of(name)))
    if labels is not None:
        (folder / "dataset.json").write_text(json.dumps({"labels": [[n, label] for n, label in labels.items()]}))


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder).as_posix())
    return path


# --- shards ----------------------------------------------------------------------------------------------------------


def test_shards_give_keys_bytes_and_labels(tmp_path):
    keys = write_shards(tmp_path, [2, 3])
    source = open_source(tmp_path, label_type="cls2id")
    assert source.shard_names == ["00.tar", "01.tar"] and source.shard_sizes.tolist() == [2, 3]
    assert read_all(source) == {key: (f"0{key[0]}.tar", encoded(pixels_of(key)), int(key[0])) for key in keys}


def test_shards_are_found_in_folders_and_behind_links(tmp_path):
    write_shards(tmp_path / "real", [1])
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "data" / "deep" / "circle").symlink_to(tmp_path / "data")
    assert open_source(tmp_path / "data").shard_names == ["deep/link/00.tar"]
    assert len(open_source(tmp_path / "real" / "00.tar")) == 1


@pytest.mark.parametrize("extension", ["jpg", "JPEG", "Png", "webp"])
def test_image_extensions_in_any_case(tmp_path, extension):
    write_tar(tmp_path / "a.tar", [(f"a.{extension}", b"bytes"), ("a.json", b"{}"), ("a.seg.png", b"mask")])
    assert read_all(open_source(tmp_path)) == {"a": ("a.tar", b"bytes", None)}


def test_what_is_left_out_is_reported_by_kind_shard_and_key(tmp_path):
    write_tar(tmp_path / "0.tar", [*sample("a"), *sample("b", None), ("c.cls", b"0"), *sample("a")])
    write_tar(tmp_path / "1.tar", [*sample("a"), *sample("d")])
    (tmp_path / "2.tar").touch()
    source = open_source(tmp_path, label_type="cls2id")
    assert list(read_all(source)) == ["a", "d"]
    assert sorted((p.kind, p.shard, p.key) for p in source.report.problems) == [
        ("duplicate key", "0.tar", "a"),
        ("duplicate key", "1.tar", "a"),
        ("empty shard", "2.tar", ""),
        ("no image", "0.tar", "c"),
        ("no label", "0.tar", "b"),
    ]
    assert len(open_source(tmp_path)) == 3  # without labels, b is a sample like any other


def test_key_filter_leaves_exact_counts(tmp_path):
    write_shards(tmp_path, [3, 1, 2])
    (tmp_path / "keys.txt").write_text("0_002\n2_000\n0_000\nnot_here\n")
    source = open_source(tmp_path, filter_keys_path=str(tmp_path / "keys.txt"))
    assert list(read_all(source)) == ["0_000", "0_002", "2_000"]
    assert source.shard_sizes.tolist() == [2, 0, 1]
    assert [source.shard(i) for i in range(3)] == ["00.tar", "00.tar", "02.tar"]
    report = source.report
    assert (report.listed, report.filtered_out, report.unmatched_keys) == (6, 3, 1)


def test_bad_label_and_vanished_shard_are_bad_samples(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.png", b"x"), ("a.cls", b"cat")])
    source = open_source(tmp_path, label_type="cls2id")
    with pytest.raises(BadSample) as bad:
        source.read(0)
    assert (bad.value.kind, bad.value.detail) == ("bad label", "found b'cat', expected a class index")

    source = pickle.loads(pickle.dumps(source))
    os.truncate(tmp_path / "a.tar", 100)
    with pytest.raises(BadSample, match="truncated shard"):
        source.read(0)
    source = pickle.loads(pickle.dumps(source))
    (tmp_path / "a.tar").unlink()
    with pytest.raises(BadSample, match="missing shard"):
        source.read(0)


def test_more_shards_than_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr("data.shard_sources._OPEN_SHARDS", 2)
    keys = write_shards(tmp_path, [1] * 5)
    source = open_source(tmp_path)
    assert list(read_all(source)) == keys == list(read_all(source))


def test_packed_strings_are_the_strings():
    strings = ["", "a", "größe", "\udc80"]
    assert list(PackedStrings(strings)) == strings and len(PackedStrings([])) == 0


# --- folders and zip files -------------------------------------------------------------------------------------------

NAMES = ["b/2.PNG", "a.png", "b/1.png", "c/x.bmp"]


@pytest.fixture(params=["folder", "zip"])
def files(request, tmp_path):
    """(kind, function from labels to the path of a data set with NAMES)."""

    def make(labels: dict[str, int | str] | None = None) -> Path:
        image_files(tmp_path / "files", NAMES, labels)
        (tmp_path / "files" / "notes.txt").write_text("not an image")
        (tmp_path / "files" / ".hidden.png").write_bytes(b"")
        return tmp_path / "files" if request.param == "folder" else zipped(tmp_path / "files", tmp_path / "f.zip")

    return request.param, make


def test_files_are_listed_in_order_of_name(files):
    kind, make = files
    source = open_source(make(), kind)
    found = read_all(source)
    assert list(found) == sorted(NAMES)
    assert all(image == encoded(pixels_of(name)) and label is None for name, (_, image, label) in found.items())
    assert source.shard_sizes.tolist() == [4]


def test_labels_come_from_dataset_json(files):
    kind, make = files
    path = make({"b/2.PNG": 7, "a.png": 1, "c/x.bmp": 0})
    source = open_source(path, kind, label_type="cls2id")
    assert {key: label for key, (_, _, label) in read_all(source).items()} == {"a.png": 1, "b/2.PNG": 7, "c/x.bmp": 0}
    assert [(p.kind, p.key) for p in source.report.problems] == [("no label", "b/1.png")]


def test_max_size_takes_a_seeded_subset(files):
    kind, make = files
    path = make()
    subsets = {tuple(read_all(open_source(path, kind, seed=seed, max_size=2))) for seed in range(20)}
    assert all(len(subset) == 2 and list(subset) == sorted(subset) for subset in subsets) and len(subsets) > 1
    assert len(open_source(path, kind, max_size=9)) == 4


def test_xflip_lists_every_image_twice(files):
    kind, make = files
    source = open_source(make(), kind, xflip=True)
    samples = [source.read(index) for index in range(len(source))]
    assert [raw.mirrored for raw in samples] == [False] * 4 + [True] * 4
    assert [raw.key for raw in samples] == sorted(NAMES) * 2


def test_files_can_be_filtered_by_key(files, tmp_path):
    kind, make = files
    (tmp_path / "keys.json").write_text('["a.png", "b/1.png"]')
    source = open_source(make(), kind, filter_keys_path=str(tmp_path / "keys.json"))
    assert list(read_all(source)) == ["a.png", "b/1.png"] and source.report.filtered_out == 2


@pytest.mark.parametrize(
    ("label", "label_type", "expected"),
    [
        ('"a cat"', "cls2id", "a class index"),
        ("1.5", "cls2id", "a class index"),
        ("true", "cls2id", "a class index"),
        ("7", "text", "a text"),
    ],
)
def test_labels_of_another_kind_are_refused_by_name(tmp_path, label, label_type, expected):
    image_files(tmp_path, ["a.png"])
    (tmp_path / "dataset.json").write_text(f'{{"labels": [["a.png", {label}]]}}')
    with pytest.raises(DataError, match=rf"dataset\.json: a\.png: found the label .*, expected {expected}"):
        open_source(tmp_path, "folder", label_type=label_type)


def test_labels_that_are_vectors_are_not_built(tmp_path):
    image_files(tmp_path, ["a.png"])
    (tmp_path / "dataset.json").write_text('{"labels": [["a.png", [0.5, 0.5]]]}')
    with pytest.raises(NotBuiltError, match=r"dataset\.json: a\.png: .* vectors are not built"):
        open_source(tmp_path, "folder", label_type="cls2id")


def test_files_have_captions(files):
    kind, make = files
    source = open_source(make({"a.png": "a dog", "b/1.png": "größer"}), kind, label_type="text")
    assert {key: label for key, (_, _, label) in read_all(source).items()} == {"a.png": "a dog", "b/1.png": "größer"}
    assert {(p.kind, p.key) for p in source.report.problems} == {("no caption", "b/2.PNG"), ("no caption", "c/x.bmp")}


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), ("{", "not valid JSON"), ('{"labels": null}', "expected")]
)
def test_label_file_that_does_not_fit_is_named(tmp_path, content, message):
    image_files(tmp_path, ["a.png"])
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=rf"dataset\.json.*{message}"):
        open_source(tmp_path, "folder", label_type="cls2id")


def test_damaged_zip_member_is_a_bad_sample(tmp_path):
    image_files(tmp_path / "files", ["a.png", "b.png"])
    path = zipped(tmp_path / "files", tmp_path / "f.zip")
    content = bytearray(path.read_bytes())
    content[200:260] = b"\0" * 60
    path.write_bytes(content)
    source = open_source(path, "zip")
    with pytest.raises(BadSample, match="unreadable file"):
        source.read(0)
    assert source.read(1).image == encoded(pixels_of("b.png"))


# --- errors ----------------------------------------------------------------------------------------------------------


def test_every_source_is_a_name_in_the_config():
    assert list(SOURCES) == list(DataConfig.model_fields["source"].annotation.__args__)


def test_missing_path_is_named(tmp_path):
    with pytest.raises(DataError, match=r"data\.path: .*nowhere does not exist"):
        open_source(tmp_path / "nowhere")


@pytest.mark.parametrize("source", ["webdataset", "folder"])
def test_nothing_to_read_says_what_was_expected(tmp_path, source):
    with pytest.raises(DataError, match=r"no sample is left\. Expected (\*\.tar shards|image files)"):
        open_source(tmp_path, source)


def test_nothing_left_by_the_filter_says_so(tmp_path):
    write_shards(tmp_path, [2])
    (tmp_path / "keys.txt").write_text("other\n")
    with pytest.raises(DataError, match=r"None of its 2 samples is in the key list .*keys\.txt"):
        open_source(tmp_path, filter_keys_path=str(tmp_path / "keys.txt"))


def test_nothing_but_problems_shows_them(tmp_path):
    (tmp_path / "a.tar").touch()
    with pytest.raises(DataError, match=r"1 problems, the first: a\.tar: empty shard"):
        open_source(tmp_path)


@pytest.mark.parametrize("option", [{"max_size": 3}, {"xflip": True}])
def test_options_of_other_sources_are_refused(tmp_path, option):
    with pytest.raises(UserError, match=f"data.{next(iter(option))}: works with data.source folder and zip only"):
        open_source(tmp_path, **option)


def test_file_that_is_no_zip_is_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match="cannot be read as a zip file"):
        open_source(tmp_path / "a.zip", "zip")
