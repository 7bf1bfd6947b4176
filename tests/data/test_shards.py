"""The index of tar shards: what is found, what is reported, and how it is cached."""

from __future__ import annotations

import json
import os

import pytest

from data import shards
from data.shards import Extent, index_shards, scan_shard, split_member_name
from data.skips import Skip
from tests.data.sample_files import sample, write_tar


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.jpg", ("a", "jpg")),
        ("a/b.c/d.seg.PNG", ("a/b.c/d", "seg.png")),
        ("a/.hidden.jpg", None),
        ("no_extension", None),
        ("n01440764_10026.cls", ("n01440764_10026", "cls")),
    ],
)
def test_sample_key_is_the_path_up_to_the_first_dot_of_the_file_name(name, parts):
    assert split_member_name(name) == parts


def test_index_points_at_the_bytes(tmp_path):
    write_tar(tmp_path / "a.tar", [*sample("x/one", 3), *sample("two", 4)])
    index = scan_shard(tmp_path, "a.tar")
    content = (tmp_path / "a.tar").read_bytes()
    assert list(index.samples) == ["x/one", "two"] and index.problems == ()
    for key, label, image in (("x/one", b"3", sample("x/one")[0][1]), ("two", b"4", sample("two")[0][1])):
        extents = index.samples[key]
        assert content[extents["cls"].offset :][: extents["cls"].size] == label
        assert content[extents["png"].offset :][: extents["png"].size] == image


def test_members_of_a_sample_need_not_be_neighbours(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.png", b"1"), ("b.png", b"2"), ("a.cls", b"0"), ("b.cls", b"0")])
    index = scan_shard(tmp_path, "a.tar")
    assert {key: sorted(extents) for key, extents in index.samples.items()} == {
        "a": ["cls", "png"],
        "b": ["cls", "png"],
    }
    assert index.problems == ()


def test_every_repetition_of_a_key_is_reported_once_and_the_first_wins(tmp_path):
    one = [("a.png", b"first"), ("a.cls", b"0")]
    again = [("a.png", b"later"), ("a.cls", b"1")]
    write_tar(tmp_path / "a.tar", [*one, *again, ("b.png", b"x"), *again])
    index = scan_shard(tmp_path, "a.tar")
    assert index.problems == (Skip("duplicate key", "a.tar", "a"),) * 2
    assert (tmp_path / "a.tar").read_bytes()[index.samples["a"]["png"].offset :].startswith(b"first")


@pytest.mark.parametrize("member", ["image", "label"])
def test_truncated_shard_keeps_its_complete_samples(tmp_path, member):
    write_tar(tmp_path / "a.tar", [m for key in ("a", "b", "c") for m in sample(key)])
    extent = scan_shard(tmp_path, "a.tar").samples["c"]["png" if member == "image" else "cls"]
    os.truncate(tmp_path / "a.tar", extent.offset + extent.size - 1)
    index = scan_shard(tmp_path, "a.tar")
    assert list(index.samples) == ["a", "b"]
    assert index.problems == (Skip("truncated shard", "a.tar", "c", "unexpected end of data"),)


def test_shard_cut_between_members_is_reported(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.png", b"x" * 512), ("b.png", b"x" * 512)])
    os.truncate(tmp_path / "a.tar", 4 * 512)
    index = scan_shard(tmp_path, "a.tar")
    assert list(index.samples) == ["a", "b"]
    assert index.problems == (Skip("truncated shard", "a.tar", "", "no end-of-archive block"),)


def test_shard_with_a_damaged_header_is_reported(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.png", b"x" * 512), ("b.png", b"x" * 512)])
    with (tmp_path / "a.tar").open("r+b") as file:
        file.seek(2 * 512)
        file.write(b"\xff" * 512)
    index = scan_shard(tmp_path, "a.tar")
    assert list(index.samples) == ["a"]
    assert [(p.kind, p.detail) for p in index.problems] == [("truncated shard", "damaged header")]


def test_empty_unreadable_and_missing_shards_are_told_apart(tmp_path):
    (tmp_path / "zero.tar").touch()
    write_tar(tmp_path / "none.tar", [])
    (tmp_path / "text.tar").write_bytes(b"this is not a tar file " * 100)
    (tmp_path / "link.tar").symlink_to(tmp_path / "gone")
    problems = [problem for index in index_shards(tmp_path) for problem in index.problems]
    assert [(problem.kind, problem.shard) for problem in problems] == [
        ("missing shard", "link.tar"),
        ("empty shard", "none.tar"),
        ("unreadable shard", "text.tar"),
        ("empty shard", "zero.tar"),
    ]


def test_index_is_cached_until_the_shard_changes(tmp_path, monkeypatch):
    write_tar(tmp_path / "deep" / "a.tar", sample("a"))
    first = list(index_shards(tmp_path))
    assert (tmp_path / ".shard_index" / "deep" / "a.tar.json").is_file()

    scanned = []
    monkeypatch.setattr(shards, "scan_shard", lambda root, shard: scanned.append(shard) or scan_shard(root, shard))
    assert list(index_shards(tmp_path)) == first and scanned == []

    write_tar(tmp_path / "deep" / "a.tar", [*sample("a"), *sample("b")])
    assert list(next(index_shards(tmp_path)).samples) == ["a", "b"] and scanned == ["deep/a.tar"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', '{"samples": 3}'])
def test_damaged_cache_is_made_anew(tmp_path, content):
    write_tar(tmp_path / "a.tar", sample("a"))
    cached = tmp_path / ".shard_index" / "a.tar.json"
    list(index_shards(tmp_path))
    cached.write_text(content)
    assert list(next(index_shards(tmp_path)).samples) == ["a"]
    assert list(json.loads(cached.read_text())["samples"]) == ["a"]


def test_cache_falls_back_to_the_user_s_folder(tmp_path, monkeypatch):
    write_tar(tmp_path / "data" / "a.tar", sample("a"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index = next(index_shards(tmp_path / "data", index_dir=str(tmp_path / "file" / "below")))
    assert list(index.samples) == ["a"]
    assert len(list((tmp_path / "cache" / "vfm-vae" / "shard_index").rglob("a.tar.json"))) == 1


def test_ranks_share_the_scanning(tmp_path, monkeypatch):
    for number in range(5):
        write_tar(tmp_path / f"{number}.tar", sample(f"s{number}"))
    scanned = []
    monkeypatch.setattr(shards, "scan_shard", lambda root, shard: scanned.append(shard) or scan_shard(root, shard))
    monkeypatch.setattr("common.distributed.world_size", lambda: 2)
    monkeypatch.setattr("common.distributed.rank", lambda: 1)
    before_barrier = []
    monkeypatch.setattr("common.distributed.barrier", lambda: before_barrier.extend(scanned))
    indices = list(index_shards(tmp_path))
    assert before_barrier == ["1.tar", "3.tar"]
    assert [list(index.samples) for index in indices] == [[f"s{number}"] for number in range(5)]


def test_index_dir_is_used(tmp_path):
    write_tar(tmp_path / "data" / "a.tar", sample("a"))
    index = next(index_shards(tmp_path / "data", index_dir=str(tmp_path / "index")))
    assert isinstance(index.samples["a"]["png"], Extent)
    assert (tmp_path / "index" / "a.tar.json").is_file() and not (tmp_path / "data" / ".shard_index").exists()
