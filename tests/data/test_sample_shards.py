import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.errors import DataError
from data.sample_shards import label_records, number_samples, open_samples, samples_fingerprint

TOOL = Path(__file__).parents[2] / "tools" / "decode" / "decode_latents_to_labels.py"


def write_shard(path, rows, labels=True, channels=3, **tensors):
    tensors = {"latents": torch.zeros(rows, channels, 2, 2), **tensors}
    if labels:
        tensors.setdefault("labels", torch.arange(rows, dtype=torch.int32))
    save_file(tensors, path)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    for number, rows in enumerate((3, 1, 2)):
        write_shard(folder / f"samples_rank00_shard{number:03d}.safetensors", rows)
    return folder


def test_names_follow_the_split_of_shards_over_ranks(folder):
    shards = open_samples(folder).shards
    assert [s.name for s in number_samples(shards)] == [f"rank00_{i:06d}.png" for i in range(6)]
    two = number_samples(shards, world_size=2)
    assert [(s.name, s.shard.path.stem[-1], s.row) for s in two] == [
        ("rank00_000000.png", "0", 0),
        ("rank00_000001.png", "0", 1),
        ("rank00_000002.png", "0", 2),
        ("rank00_000003.png", "2", 0),
        ("rank00_000004.png", "2", 1),
        ("rank01_000000.png", "1", 0),
    ]
    limited = number_samples(shards, 2, max_images_per_rank=2)
    assert [s.name for s in limited] == [s.name for s in two[:2]] + [two[5].name]


def test_a_shard_without_labels_keeps_its_names(folder):
    write_shard(folder / "samples_rank00_shard001.safetensors", 1, labels=False)
    records = label_records(number_samples(open_samples(folder).shards), {0: "zero", 1: "one"})
    assert "rank00_000003.png" not in records
    assert records["rank00_000001.png"] == {"label_id": 1, "class_name": "one"}
    assert records["rank00_000002.png"] == {"label_id": 2, "class_name": "unknown"}
    assert records["rank00_000004.png"] == {"label_id": 0, "class_name": "zero"}


def test_the_fingerprint_follows_the_contents(folder):
    before = samples_fingerprint(open_samples(folder).shards)
    assert samples_fingerprint(open_samples(folder).shards) == before
    write_shard(folder / "samples_rank00_shard001.safetensors", 1, labels=False)
    assert samples_fingerprint(open_samples(folder).shards) != before


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"samples": torch.zeros(2, 3)}, r"shard001\.safetensors: found samples, expected latents and labels"),
        ({"latents": torch.zeros(2, 3)}, r"latents: found F32 \[2, 3\], expected \[n, C, h, w\] in F32 or F16 or BF16"),
        ({"latents": torch.zeros(2, 3, 2, 2, dtype=torch.int32)}, r"latents: found I32 \[2, 3, 2, 2\]"),
        ({"latents": torch.zeros(2, 3, 2, 2), "labels": torch.zeros(3)}, r"labels: found \[3\] for 2 latents"),
        ({"latents": torch.zeros(2, 4, 2, 2)}, r"shard001.*found \[4, 2, 2\] per sample, expected \[3, 2, 2\] as in"),
    ],
)
def test_a_shard_with_other_content_is_named(tensors, message, folder):
    save_file(tensors, folder / "samples_rank00_shard001.safetensors")
    with pytest.raises(DataError, match=message):
        open_samples(folder)


def test_a_damaged_shard_is_named_or_left_out_with_its_place(folder):
    path = folder / "samples_rank00_shard001.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"shard001\.safetensors: cannot be read.*pass --skip-bad-shards"):
        open_samples(folder)
    opened = open_samples(folder, skip_bad_shards=True)
    assert len(opened.problems) == 1 and "shard001" in opened.problems[0]
    names = [sample.name for sample in number_samples(opened.shards, world_size=2)]
    assert names == [f"rank00_{i:06d}.png" for i in range(5)]


def test_a_folder_without_shards_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no \*\.safetensors shard found"):
        open_samples(tmp_path)
    with pytest.raises(DataError, match="nothing: not a folder"):
        open_samples(tmp_path / "nothing")
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="none of its 1 shards can be read; the first"):
        open_samples(tmp_path, skip_bad_shards=True)


def test_the_command_writes_labels_sorted_by_name(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "classes.json").write_text(json.dumps({"0": "tench", "1": "goldfish"}))
    output = tmp_path / "new" / "labels.json"
    arguments = ["--input-dir", folder, "--output-json", output, "--class-index-json", tmp_path / "classes.json"]
    monkeypatch.setattr(sys, "argv", ["decode_latents_to_labels.py", *map(str, arguments), "--world-size", "2"])
    main = runpy.run_path(str(TOOL))["main"]
    assert main() == 0 and "6 labels of 6 images" in capsys.readouterr().out
    records = json.loads(output.read_text())
    assert list(records) == sorted(records) and len(records) == 6
    assert records["rank01_000000.png"] == {"label_id": 0, "class_name": "tench"}
    (folder / "samples_rank00_shard001.safetensors").write_bytes(b"")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--skip-bad-shards"])
    assert main() == 1 and "left out: " in capsys.readouterr().err
