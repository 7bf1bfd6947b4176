"""The linear probe finds what is linear, finds nothing where there is nothing, and repeats itself to the bit."""

from __future__ import annotations

import json
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import DataError, UserError
from evaluation.linear_probe import (
    Accuracy,
    ProbeFeatures,
    ProbeSet,
    ProbeTraining,
    measure_accuracy,
    probe_features,
    run_linear_probe,
    train_classifier,
)
from evaluation.prefetch.run import PrefetchOptions
from networks.interfaces import Features
from tests.data.sample_files import encoded, sample, write_tar

CPU = torch.device("cpu")
OPTIONS = PrefetchOptions(resolution=16, batch_size=8, rows_per_file=16)
LATENT = ProbeFeatures()
TRAINING = ProbeTraining(epochs=30, batch_size=64, learning_rate=0.05)
TOOL = Path(__file__).parents[2] / "tools" / "linear_probe.py"


def made_up(count: int, classes: int, spread: float, seed: int) -> ProbeSet:
    """Features around one centre per class, on scales and with offsets that differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(classes, (count,), generator=generator)
    features = centres[labels] + spread * torch.randn(count, 16, generator=generator)
    return ProbeSet(features * torch.logspace(-3, 3, 16) + torch.linspace(-50, 50, 16), labels)


def write_pictures(folder: Path, first: int, count: int, classes: int = 3, random_labels: bool = False) -> Path:
    """Noisy pictures whose colour tells their class, or nothing."""
    members = []
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        label = int(rng.integers(classes))
        colour = np.eye(3)[rng.integers(3) if random_labels else label] * 120 + 40
        pixels = np.clip(colour + rng.normal(0, 30, (20, 24, 3)), 0, 255).astype(np.uint8)
        members += sample(f"picture_{number}", label, encoded(pixels))
    write_tar(folder / "00.tar", members)
    return folder


def probe(tokenizer, folder: Path, features: ProbeFeatures = LATENT, random_labels: bool = False):
    train = write_pictures(folder / "train_shards", 0, 60, random_labels=random_labels)
    validation = write_pictures(folder / "val_shards", 1000, 60, random_labels=random_labels)
    return run_linear_probe(tokenizer, train, validation, folder / "out", features, TRAINING, OPTIONS, CPU)


def test_separable_classes_are_told_apart():
    train, validation = (made_up(600, 10, 0.2, seed) for seed in (1, 2))
    accuracy = measure_accuracy(train_classifier(train, TRAINING, CPU), validation)
    assert accuracy.top1 >= 0.95 and accuracy.top5 >= 0.99


def test_random_labels_give_chance():
    train, validation = (made_up(2000, 10, 0.2, seed) for seed in (1, 2))
    shuffled = ProbeSet(train.features, train.labels[torch.randperm(2000, generator=torch.Generator().manual_seed(3))])
    accuracy = measure_accuracy(train_classifier(shuffled, TRAINING, CPU), validation)
    assert abs(accuracy.top1 - 0.1) < 0.08 and abs(accuracy.top5 - 0.5) < 0.12


def test_the_accuracies_are_the_shares_of_hits():
    classifier = train_classifier(ProbeSet(torch.eye(8), torch.arange(8)), TRAINING, CPU)
    with torch.no_grad():
        classifier.weight.copy_(torch.eye(8))
        classifier.bias.copy_(-torch.arange(8.0) * 10)  # class 0 is always the likeliest, then 1, and so on
    assert measure_accuracy(classifier, ProbeSet(torch.zeros(8, 8), torch.arange(8))) == Accuracy(1 / 8, 5 / 8)


def test_a_feature_that_never_varies_does_no_harm():
    train, validation = (made_up(600, 10, 0.2, seed) for seed in (1, 2))
    for data in (train, validation):
        data.features[:, 3] = 0.1
    classifier = train_classifier(train, TRAINING, CPU)
    assert classifier.weight.isfinite().all() and measure_accuracy(classifier, validation).top1 >= 0.95


def test_a_probe_of_latents_finds_colours_and_repeats_itself(tokenizer, tmp_path):
    first, second = (probe(tokenizer, tmp_path / name) for name in ("a", "b"))
    assert first.validation.top1 >= 0.95 and first.validation.top5 == 1.0
    assert first.record == second.record
    again = probe(tokenizer, tmp_path / "a")  # from the features that are there
    assert again.record == first.record and [summary.kept for summary in again.summaries] == [60, 60]


def test_a_probe_of_labels_without_meaning_gives_chance(tokenizer, tmp_path):
    assert probe(tokenizer, tmp_path, random_labels=True).validation.top1 < 0.55


def test_the_record_states_the_protocol(tokenizer, tmp_path):
    record = probe(tokenizer, tmp_path, ProbeFeatures(pooling="flatten")).record
    assert (
        record["protocol"].items()
        >= {
            "features": "latent",
            "pooling": "flatten",
            "latent": "mode",
            "feature_width": 48,
            "classes": 3,
            "epochs": 30,
            "learning_rate": 0.05,
            "seed": 0,
        }.items()
    )
    assert record["train"]["counts"]["written"] == 60 and record["shared_keys"] == 0
    assert record["validation"]["plan"]["weights_sha256"] == record["train"]["plan"]["weights_sha256"]


def test_features_are_pooled_latents_or_tokens_of_a_layer(tokenizer):
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    levels = [torch.randn(2, 4, 5), torch.randn(2, 16, 7)]
    tokenizer.config.encoder = types.SimpleNamespace(patch_from_layers=[3, -1])
    tokenizer.encoder = lambda images: Features(levels, [(2, 2), (4, 4)])
    z = probe_features(tokenizer, images, ["a", "b"], ProbeFeatures(pooling="flatten"))
    assert z.shape == (2, 48)
    mean = probe_features(tokenizer, images, ["a", "b"], ProbeFeatures())
    assert torch.allclose(mean, z.view(2, 3, 16).mean(2))
    tokens = probe_features(tokenizer, images, ["a", "b"], ProbeFeatures("encoder", layer=3))
    assert torch.equal(tokens, levels[0].mean(1))
    with pytest.raises(UserError, match=r"--layer: found 7, expected one of .*\[3, -1\]"):
        probe_features(tokenizer, images, ["a", "b"], ProbeFeatures("encoder", layer=7))


def test_data_sets_that_cannot_be_probed_are_refused(tokenizer, tmp_path):
    train = write_pictures(tmp_path / "train", 0, 20, classes=2)
    validation = write_pictures(tmp_path / "val", 1000, 40, classes=3)
    with pytest.raises(DataError, match="--val-path: 1 of its classes never occur in --train-path, such as 2"):
        run_linear_probe(tokenizer, train, validation, tmp_path / "a", ProbeFeatures(), TRAINING, OPTIONS, CPU)
    single = write_pictures(tmp_path / "single", 0, 20, classes=1)
    with pytest.raises(DataError, match=r"--train-path: found the classes \[0\], expected at least two"):
        run_linear_probe(tokenizer, single, single, tmp_path / "b", ProbeFeatures(), TRAINING, OPTIONS, CPU)
    with pytest.raises(UserError, match="learning_rate: found -1, expected a number above 0"):
        ProbeTraining(learning_rate=-1)


def test_the_command_writes_the_result_and_warns_of_shared_images(tokenizer, tmp_path, monkeypatch, capsys):
    checkpoint = types.SimpleNamespace(load_tokenizer=lambda *args, **kwargs: tokenizer)
    monkeypatch.setitem(sys.modules, "networks.checkpoint", checkpoint)
    shards = str(write_pictures(tmp_path / "shards", 0, 30))
    out = str(tmp_path / "out")
    arguments = ["--train-path", shards, "--val-path", shards, "--output-dir", out, "--vae-pth", "x", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["linear_probe.py", *arguments])
    runpy.run_path(str(TOOL))["main"]()
    captured = capsys.readouterr()
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert captured.out == f"top-1: {result['top1']:.4f}  top-5: 1.0000  (30 images)\n"
    assert "warning: 30 sample keys occur in both data sets" in captured.err
