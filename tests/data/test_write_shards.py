"""Building shards from images, and the commands of the data package."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError
from data.class_texts import imagenet_class_texts
from data.config import DataConfig
from data.decode import decode_image
from data.scan import scan_large_images
from data.sources import build_source
from data.write_shards import NewSample, shards_from_folder, write_shards
from tests.data.sample_files import encoded, pixels_of, write_tar

ROOT = Path(__file__).parents[2]


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes: 3 and 2 images, of several formats; two names that differ in their suffix only."""
    for name, image_format in (
        ("cat/1.jpg", "jpeg"),
        ("cat/2.b.png", "png"),
        ("cat/3.bmp", "bmp"),
        ("dog/1.png", "png"),
        ("dog/1.WEBP", "webp"),
    ):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(encoded(pixels_of(name), image_format))
    return tmp_path / "photos"


def read_all(path: Path, label_type: str = "cls2id") -> dict[str, tuple[bytes, int | None]]:
    source = build_source(DataConfig(path=str(path), label_type=label_type), 0)
    samples = [source.read(index) for index in range(len(source))]
    assert source.report.problems == []
    return {raw.key: (raw.image, raw.label) for raw in samples}


def run(*arguments: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, cwd=ROOT)


def test_classes_are_the_sub_folders(photos, tmp_path):
    report = shards_from_folder(photos, tmp_path / "shards", shard_size=2)
    assert [shard.name for shard in report.written.shards] == [f"shard-00000{number}.tar" for number in range(3)]
    sizes = json.loads((tmp_path / "shards" / "sizes.json").read_text())
    assert sizes == {"shard-000000.tar": 2, "shard-000001.tar": 2, "shard-000002.tar": 1}
    found = read_all(tmp_path / "shards")
    assert {key: label for key, (_, label) in found.items()} == {
        "cat/1": 0,
        "cat/2_b": 0,
        "cat/3": 0,
        "dog/1": 1,
        "dog/1-2": 1,
    }
    assert found["cat/1"][0] == (photos / "cat" / "1.jpg").read_bytes()
    assert found["cat/3"][0] == encoded(pixels_of("cat/3.bmp"))
    assert json.loads((tmp_path / "shards" / "cls_to_text.json").read_text()) == {"0": "cat", "1": "dog"}


def test_equal_input_gives_equal_bytes(photos, tmp_path):
    digests = []
    for number in range(2):
        for image in photos.rglob("*.*"):
            os.utime(image, (number, number))
        report = shards_from_folder(photos, tmp_path / f"shards{number}", shard_size=3)
        content = b"".join(shard.read_bytes() for shard in report.written.shards)
        assert report.digest == hashlib.sha256(content).hexdigest()
        digests.append(report.digest)
    assert digests[0] == digests[1]


@pytest.mark.parametrize(("image_format", "magic"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8\xff")])
def test_images_are_encoded_anew_if_asked(photos, tmp_path, image_format, magic):
    shards_from_folder(photos, tmp_path / "shards", image_format=image_format)
    assert all(image.startswith(magic) for image, _ in read_all(tmp_path / "shards").values())


def test_labels_can_come_from_a_file(photos, tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({"labels": [["cat/1.jpg", 9], ["dog/1.png", 4]]}))
    report = shards_from_folder(photos, tmp_path / "shards", labels_path=tmp_path / "labels.json")
    assert {key: label for key, (_, label) in read_all(tmp_path / "shards").items()} == {"cat/1": 9, "dog/1": 4}
    assert [(bad.kind, bad.key) for bad in report.bad] == [
        ("no label", "cat/2.b.png"),
        ("no label", "cat/3.bmp"),
        ("no label", "dog/1.WEBP"),
    ]


def test_images_without_sub_folders_have_no_labels(photos, tmp_path):
    report = shards_from_folder(photos / "cat", tmp_path / "shards")
    assert (
        report.class_names == {}
        and [label for _, label in read_all(tmp_path / "shards", "none").values()] == [None] * 3
    )


def test_bad_images_are_left_out_and_listed(photos, tmp_path):
    (photos / "dog" / "0.jpg").write_bytes(b"hello")
    report = shards_from_folder(photos, tmp_path / "shards")
    assert [str(bad) for bad in report.bad] == ["photos: dog/0.jpg: not an image"]
    assert report.written.samples == 5 == len(read_all(tmp_path / "shards"))


def test_shards_are_never_mixed_with_old_ones(photos, tmp_path):
    shards_from_folder(photos, tmp_path / "shards")
    with pytest.raises(DataError, match=r"shards: already holds \.tar shards"):
        shards_from_folder(photos, tmp_path / "shards")


@pytest.mark.parametrize(
    ("keys", "message"), [(["a", "a"], "'a' is the key of two samples"), (["a.b"], "'a.b' cannot be a sample key")]
)
def test_keys_that_would_not_be_read_back_are_refused(tmp_path, keys, message):
    with pytest.raises(DataError, match=message):
        write_shards([NewSample(key, b"x", "png") for key in keys], tmp_path)


def test_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="no image files found"):
        shards_from_folder(tmp_path / "photos", tmp_path / "shards")
    (tmp_path / "photos" / "a.png").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"none of 1 images can be used; the first: photos: a\.png: not an image"):
        shards_from_folder(tmp_path / "photos", tmp_path / "shards")


def test_command_reports_bad_images_by_its_exit_code(photos, tmp_path):
    (photos / "dog" / "0.jpg").write_bytes(b"hello")
    command = ["tools/build_shards.py", "--input-dir", photos]
    result = run(*command, "--output-dir", tmp_path / "a")
    assert result.returncode == 1 and "left out: photos: dog/0.jpg: not an image" in result.stderr
    assert result.stdout.startswith(
        "5 samples in 1 shards, 2 classes, 1 images left out; read back and compared; sha256 "
    )
    again = run(*command, "--output-dir", tmp_path / "b", "--skip-bad")
    assert again.returncode == 0 and again.stdout == result.stdout
    refused = run(*command, "--output-dir", tmp_path / "b")
    assert refused.returncode == 2 and refused.stderr.startswith("error: ") and "already holds" in refused.stderr


# --- ImageNet information --------------------------------------------------------------------------------------------

SIZES = {"small": (20, 30), "just": (24, 40), "large": (90, 25), "bad": None, "webp": (24, 24)}


def sized_shard(path: Path) -> None:
    members = []
    for key, size in SIZES.items():
        image_format = {"webp": "webp", "just": "jpeg"}.get(key, "png")
        content = b"hello" if size is None else encoded(pixels_of(key, *size), image_format)
        members.append((f"{key}.{image_format}", content))
    write_tar(path, members)


def test_scanner_lists_large_images_and_bad_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("data.scan._HEADER_BYTES", 256)
    sized_shard(tmp_path / "a.tar")
    result = scan_large_images(build_source(DataConfig(path=str(tmp_path)), 0), 24)
    assert result.keys == ["just", "large", "webp"] and result.scanned == 5
    assert [(bad.kind, bad.shard, bad.key) for bad in result.bad] == [("not an image", "a.tar", "bad")]


def test_scanner_s_list_is_a_key_filter(tmp_path):
    sized_shard(tmp_path / "data" / "a.tar")
    output = tmp_path / "keys.txt"
    result = run("imagenet_info/scan_keys.py", "--data-path", tmp_path / "data", "--min-side", 24, "--output", output)
    assert result.returncode == 0 and result.stdout.startswith(
        "3 of 5 images have a shorter side of at least 24 pixels; 1 "
    )
    source = build_source(DataConfig(path=str(tmp_path / "data"), filter_keys_path=str(output)), 0)
    assert len(source) == 3


def test_scanner_names_a_missing_folder(tmp_path):
    result = run("imagenet_info/scan_keys.py", "--data-path", tmp_path / "x", "--output", tmp_path / "k.txt")
    assert result.returncode == 2 and result.stderr.startswith("error: data.path:")


def test_class_texts_are_the_published_ones():
    facts = json.loads((ROOT / "tests" / "golden" / "tools_io.json").read_text())
    stored = json.loads((ROOT / "imagenet_info" / "imagenet_1k_cls_to_text.json").read_text())
    assert list(stored) == [str(index) for index in range(1000)]
    digest = hashlib.sha256("\n".join(stored.values()).encode()).hexdigest()
    assert digest == facts["cls_to_text_sha256_of_sorted_values"]
    assert imagenet_class_texts() == stored
    assert stored["134"] == "crane(bird)" and stored["517"] == "crane(machine)"


def test_pixels_survive_a_png_shard(tmp_path):
    image = pixels_of("a")
    written = write_shards([NewSample("a", encoded(image), "png", 3)], tmp_path)
    assert written.samples == 1
    ((content, label),) = read_all(tmp_path).values()
    assert label == 3 and np.array_equal(decode_image(content).pixels, image)
