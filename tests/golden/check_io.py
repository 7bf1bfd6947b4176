"""How the cases of file names, labels and their bookkeeping are compared."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import save_file

from data.name_tensors import pack_names, unpack_names
from data.reg_latents import reg_name
from data.sample_shards import label_records, number_samples, open_samples
from data.sources import parse_labels
from evaluation.alignment.conditions import noise_name
from evaluation.alignment.extraction import feature_path, part_path
from tests.golden.cases import HERE, Case

CLASS_TEXTS = HERE.parents[1] / "imagenet_info" / "imagenet_1k_cls_to_text.json"
CLASSES = 1000


def check_io(case: Case) -> None:
    """Every entry of a case; `what` and notes are words."""
    checks = {
        "decode_labels": _check_decode_labels,
        "names_tensor": _check_names_tensor,
        "reg_dataset_json_example": _check_dataset_json,
        "cls_to_text_sha256_of_sorted_values": _check_class_texts,
        "feature_file_names": _check_feature_file_names,
    }
    entries = {name: entry for name, entry in case.facts.items() if name != "what" and not name.endswith("_note")}
    assert entries.keys() <= checks.keys(), f"not compared: {sorted(entries.keys() - checks.keys())}"
    for name, entry in entries.items():
        checks[name](entry)
        case.compared += 1


def _check_decode_labels(entry: dict[str, Any]) -> None:
    """Shards with these labels get these names and texts, for every number of ranks."""
    texts = {label: f"<text of class {label}>" for label in range(CLASSES)}
    with tempfile.TemporaryDirectory() as folder:
        for name, labels in entry["input_shards_labels"].items():
            latents = torch.zeros(len(labels), 1, 1, 1)
            save_file({"latents": latents, "labels": torch.tensor(labels, dtype=torch.int32)}, Path(folder, name))
        shards = open_samples(folder).shards
        for key, expected in entry.items():
            if key != "input_shards_labels":
                ranks = int(key.removeprefix("world_size_"))
                found = label_records(number_samples(shards, ranks), texts)
                assert list(found.items()) == list(expected.items()), key


def _check_names_tensor(entry: dict[str, Any]) -> None:
    assert pack_names(entry["names"]).tolist() == entry["uint8_rows"]
    assert unpack_names(torch.tensor(entry["uint8_rows"], dtype=torch.uint8)) == entry["names"]


def _check_dataset_json(entry: dict[str, Any]) -> None:
    """The layout is read, and its names are those that samples get."""
    labels = parse_labels("dataset.json", entry)
    assert [[name, label] for name, label in labels.items()] == entry["labels"]
    assert [f"{reg_name(PurePosixPath(name).stem)}.npy" for name in labels] == list(labels)


def _check_class_texts(digest: str) -> None:
    texts = json.loads(CLASS_TEXTS.read_text(encoding="utf-8"))
    joined = "\n".join(texts[str(index)] for index in range(len(texts)))
    assert hashlib.sha256(joined.encode()).hexdigest() == digest


def _check_feature_file_names(names: list[str]) -> None:
    for name in names:
        prefix, _, rest = name.partition("_")
        if match := re.fullmatch(r"(\w+)_t(\d\.\d+)\.pt", rest):
            found = part_path(Path(), prefix, match[1], float(match[2]), ".pt").name
        else:
            condition = rest.removesuffix(".pt")
            if match := re.fullmatch(r"noise_(\d\.\d+)", condition):
                condition = noise_name(float(match[1]))
            found = feature_path(Path(), prefix, ["mean"], "mean", condition, ".pt").name
        assert found == name, f"{found} instead of {name}"
