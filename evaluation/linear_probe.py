"""Linear probe: how well a linear classifier tells classes by latents, or by features of the frozen encoder.

train and validation images -> features, pooled over positions -> standardised -> softmax regression -> top-1, top-5

The features are computed once, with `evaluation.prefetch`; the classifier is trained on one device. Every draw is
keyed by the seed, so that a repetition gives the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from common import distributed
from common.errors import DataError, UserError
from common.random import torch_generator
from common.value_range import uint8_to_unit
from data.name_tensors import unpack_names
from data.prefetch_index import list_shards, require_finished
from data.row_files import FLOATS, Column, RowFiles
from evaluation.output_folder import tool_versions
from evaluation.posterior import LatentChoice, encode_images
from evaluation.prefetch.format import Encoded
from evaluation.prefetch.run import PrefetchOptions, PrefetchSummary, prefetch
from evaluation.prefetch.shard_files import ShardFormat

FeatureKind = Literal["latent", "encoder"]
Pooling = Literal["mean", "flatten"]
TOP = 5
_COLUMNS = {"features": Column(FLOATS, 2), "labels": Column(("I64",), 1), "names": Column(("U8",), 2, same_shape=False)}


@dataclass(frozen=True)
class ProbeFeatures:
    """What is probed.

    Args:
        source: "latent" of the tokenizer, or "encoder": tokens of a layer of its frozen encoder.
        pooling: "mean" over positions, or "flatten": all of them side by side.
        latent: "mode" takes the mean of the posterior, "sample" draws from it.
        layer: of the encoder, one of the configuration's `patch_from_layers`; None: `run_linear_probe` takes the last.
        seed: key of the posterior noise.
    """

    source: FeatureKind = "latent"
    pooling: Pooling = "mean"
    latent: LatentChoice = "mode"
    layer: int | None = None
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        """The choices that matter for `source`, for records."""
        own = {"latent": {"latent": self.latent, "seed": self.seed}, "encoder": {"layer": self.layer}}
        return {"features": self.source, "pooling": self.pooling, **own[self.source]}


@dataclass(frozen=True)
class ProbeTraining:
    """How the classifier is trained: softmax regression from zero weights, AdamW, cosine decay to 0.

    Args:
        epochs: passes over the training features.
        batch_size: features per step.
        learning_rate: at the start.
        weight_decay: of the weights, not of the bias.
        seed: key of the order of the features.
    """

    epochs: int = 100
    batch_size: int = 1024
    learning_rate: float = 1e-2
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: found {getattr(self, name)}, expected at least {least}.")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise UserError(f"learning_rate: found {self.learning_rate:g}, expected a number above 0.")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise UserError(f"weight_decay: found {self.weight_decay:g}, expected a number from 0 on.")


@dataclass(frozen=True)
class ProbeSet:
    """Features [N, D], float32, with the class indices [N] of their images."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Accuracy:
    """Shares of images whose class is the likeliest, and among the five likeliest."""

    top1: float
    top5: float


# --- features ---------------------------------------------------------------------------------------------------------


class ProbeFormat(ShardFormat):
    """Column `features` [n, D], float32."""

    name = "probe"
    file_stem = "features"

    def __init__(self, features: ProbeFeatures):
        self._features = features

    def identity(self) -> dict[str, Any]:
        return self._features.describe()

    def encode(self, model: nn.Module, images: Tensor, keys: Sequence[str]) -> Encoded:
        return Encoded({"features": probe_features(model, images, keys, self._features).float().cpu()})


def probe_features(model: nn.Module, images: Tensor, keys: Sequence[str], features: ProbeFeatures) -> Tensor:
    """The features of images, [B, D].

    Args:
        model: a tokenizer in eval mode.
        images: uint8 [B, 3, R, R], on the model's device.
        keys: one per image.
    Raises: UserError if the encoder's layer is not among those that the tokenizer uses.
    """
    if features.source == "latent":
        z = encode_images(model, images, keys, features.latent, features.seed).z  # [B, C, h, w]
        return z.mean(dim=(2, 3)) if features.pooling == "mean" else z.flatten(1)
    layers = model.config.encoder.patch_from_layers
    if features.layer not in layers:
        raise UserError(
            f"--layer: found {features.layer}, expected one of the layers that this tokenizer uses: {list(layers)}."
        )
    tokens = model.encoder(uint8_to_unit(images)).levels[layers.index(features.layer)]  # [B, h * w, D]
    return tokens.mean(dim=1) if features.pooling == "mean" else tokens.flatten(1)


# --- the classifier ---------------------------------------------------------------------------------------------------


class LinearClassifier:
    """Softmax regression on standardised features.

    Args:
        features: the training features [N, D], whose mean and standard deviation standardise all others. A feature
            that does not vary is only centred.
        classes: number of classes.
        device: where it works.
    """

    def __init__(self, features: Tensor, classes: int, device: torch.device):
        std, mean = torch.std_mean(features, dim=0, correction=0)
        varies = std > 1e-6 * mean.abs()  # below that it is rounding
        self._mean = mean.to(device)
        self._scale = torch.where(varies, 1 / std, 1).to(device)
        self.weight = torch.zeros(classes, features.shape[1], device=device, requires_grad=True)
        self.bias = torch.zeros(classes, device=device, requires_grad=True)

    def logits(self, features: Tensor) -> Tensor:
        """[B, D] on any device -> [B, classes]."""
        standardised = (features.to(self._mean.device) - self._mean) * self._scale
        return F.linear(standardised, self.weight, self.bias)


def train_classifier(
    data: ProbeSet, training: ProbeTraining, device: torch.device, show_progress: bool = False
) -> LinearClassifier:
    """Train a classifier for the classes 0 to the largest label.

    Raises: DataError if there are fewer than two classes, or a label is negative.
    """
    classes = data.labels.unique()
    if len(classes) < 2 or classes[0] < 0:
        raise DataError(
            f"--train-path: found the classes {classes[:5].tolist()}, expected at least two, numbered from 0 on."
        )
    classifier = LinearClassifier(data.features, int(classes[-1]) + 1, device)
    count, size = len(data.labels), training.batch_size
    groups = [
        {"params": [classifier.weight], "weight_decay": training.weight_decay},
        {"params": [classifier.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate)
    steps = training.epochs * -(-count // size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in tqdm(range(training.epochs), unit="epoch", disable=not show_progress):
        order = torch.randperm(count, generator=torch_generator(training.seed, "linear_probe", epoch))
        for batch in order.split(size):
            loss = F.cross_entropy(classifier.logits(data.features[batch]), data.labels[batch].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier


@torch.no_grad()
def measure_accuracy(classifier: LinearClassifier, data: ProbeSet, batch_size: int = 4096) -> Accuracy:
    """Accuracy on labelled features; with fewer than five classes, top-5 is 1."""
    hits = torch.zeros(2, dtype=torch.int64)
    for features, labels in zip(data.features.split(batch_size), data.labels.split(batch_size)):
        logits = classifier.logits(features)
        best = logits.topk(min(TOP, logits.shape[1]), dim=1).indices.cpu() == labels[:, None]
        hits += torch.stack([best[:, 0].sum(), best.any(dim=1).sum()])
    top1, top5 = (hits.double() / len(data.labels)).tolist()
    return Accuracy(top1, top5)


# --- all together -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProbeResult:
    """A finished probe: accuracies, the record for a JSON file, and what was found wrong with the two data sets."""

    validation: Accuracy
    train: Accuracy
    record: dict[str, Any]
    summaries: tuple[PrefetchSummary, PrefetchSummary]


def run_linear_probe(
    model: nn.Module,
    train_path: str | Path,
    validation_path: str | Path,
    output_dir: str | Path,
    features: ProbeFeatures,
    training: ProbeTraining,
    options: PrefetchOptions,
    device: torch.device,
) -> ProbeResult:
    """Compute the features of two labelled data sets, train on the first, measure on the second. On all ranks.

    Args:
        model: a tokenizer in eval mode, on `device`.
        output_dir: gets the features, in `train/` and `validation/`; those of an earlier probe of the same plan are
            used again.

    Raises: DataError as `prefetch` does; or if a class of the validation images never occurs in training.
    """
    if features.source == "encoder" and features.layer is None:
        features = replace(features, layer=model.config.encoder.patch_from_layers[-1])
    output_dir = Path(output_dir)
    folders = output_dir / "train", output_dir / "validation"
    train_summary, validation_summary = (
        prefetch(model, path, folder, ProbeFormat(features), options, device)
        for path, folder in zip((train_path, validation_path), folders)
    )
    train, validation, record = distributed.on_rank_0(lambda: _probe(*folders, features, training, device))
    return ProbeResult(validation, train, record, (train_summary, validation_summary))


def _probe(
    train_folder: Path, validation_folder: Path, features: ProbeFeatures, training: ProbeTraining, device: torch.device
) -> tuple[Accuracy, Accuracy, dict[str, Any]]:
    """Train and measure; on rank 0."""
    train_rows, validation_rows = (RowFiles(list_shards(f), _COLUMNS) for f in (train_folder, validation_folder))
    train, validation = _read(train_rows), _read(validation_rows)
    unseen = sorted(set(validation.labels.tolist()) - set(train.labels.tolist()))
    if unseen:
        raise DataError(
            f"--val-path: {len(unseen)} of its classes never occur in --train-path, such as {unseen[0]}; expected the "
            "same numbers of classes in both."
        )
    classifier = train_classifier(train, training, device, show_progress=True)
    accuracies = measure_accuracy(classifier, train), measure_accuracy(classifier, validation)
    record = {
        "top1": accuracies[1].top1,
        "top5": accuracies[1].top5,
        "train_top1": accuracies[0].top1,
        "train_top5": accuracies[0].top5,
        "protocol": {
            **features.describe(),
            "feature_width": train.features.shape[1],
            "classes": len(classifier.bias),
            "standardisation": "mean and standard deviation of each training feature",
            "classifier": "softmax regression, weights and bias from 0",
            "optimiser": "AdamW, betas 0.9 and 0.999, cosine decay to 0 over all steps",
            **asdict(training),
            "device": device.type,
        },
        "shared_keys": len(_keys(train_rows) & _keys(validation_rows)),
        "train": _description(train_folder),
        "validation": _description(validation_folder),
        "versions": tool_versions(),
    }
    return accuracies[1], accuracies[0], record


def _read(rows: RowFiles) -> ProbeSet:
    return ProbeSet(*(torch.cat(list(rows.blocks(column, 65536))) for column in ("features", "labels")))


def _keys(rows: RowFiles) -> set[str]:
    return {key for block in rows.blocks("names", 65536) for key in unpack_names(block)}


def _description(folder: Path) -> dict[str, Any]:
    index = require_finished(folder)
    assert index is not None
    return {"counts": index["counts"], "plan": index["plan"]}
