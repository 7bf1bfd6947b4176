"""How the cases of prefetched latents are compared: the written format, its statistics, and the reader's items."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from data.latents import LatentDataset, write_statistics
from data.reg_latents import sample_moments
from evaluation.prefetch.reg import stored_moments
from evaluation.prefetch.statistics import sampled_statistics
from networks.latent import DiagonalGaussian
from tests.golden.cases import Case

_SHARD_TENSORS = ("latents", "latents_flip", "labels")


def check_latent_stats(case: Case) -> None:
    """Order of the rows, statistics and normalised items for LightningDiT; moments and statistics for REG."""
    facts, stored = case.facts["lightningdit"], case.tensors
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shard, (start, stop) in facts["shards"].items():
            _write_shard(folder / f"{shard}.safetensors", {key: stored[key][start:stop] for key in _SHARD_TENSORS})
        _check_statistics(case, folder)
        data = LatentDataset(folder)
        order = [[path.name, row] for path, row in map(data.rows.place, range(len(data)))]
        assert order == facts["global_order_(file,row)"]
        (draws,) = (name for name in facts if name.startswith("flip_choice_uniform_draws_np_seed"))
        seed = int(draws.removeprefix("flip_choice_uniform_draws_np_seed"))
        coins = np.random.RandomState(seed).uniform(size=len(facts[draws])).tolist()
        for coin, expected in zip(coins, facts[draws], strict=True):
            case.check_value("coin", coin, expected)
        for name in (name for name in stored if name.startswith("items_multiplier_")):
            multiplied = LatentDataset(folder, latent_multiplier=float(name.removeprefix("items_multiplier_")))
            items = [multiplied.item(index, coin) for index, coin in enumerate(coins)]
            case.check(name, torch.stack([item.z for item in items]))
            case.check("items_labels", torch.tensor([item.label for item in items]))
    case.checked.update(_SHARD_TENSORS)
    _check_reg(case)
    _require_all(case)


def _check_reg(case: Case) -> None:
    stored = case.tensors
    mean_logvar, eps = stored["reg.mean_logvar"], stored["reg.eps"]
    moments = stored_moments(DiagonalGaussian(mean_logvar))
    case.check("reg.mean_std", moments)
    z = sample_moments(moments[len(moments) - len(eps) :], eps)
    case.check("reg.z", z)
    statistics = sampled_statistics(len(z), z.__getitem__, seed=0)
    case.check("reg.stats.mean", statistics.mean.float().reshape(1, -1, 1, 1))
    case.check("reg.stats.std", statistics.std.float().reshape(1, -1, 1, 1))
    case.checked.update(("reg.mean_logvar", "reg.eps"))


def check_latent_dataset(case: Case) -> None:
    """Statistics of all shards, and every item for both outcomes of the coin."""
    stored = case.tensors
    shards = sorted({name.partition(".")[0] for name in stored if name.startswith("shard")})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shard in shards:
            number = int(shard.removeprefix("shard"))
            tensors = {key: stored[f"{shard}.{key}"] for key in _SHARD_TENSORS}
            _write_shard(folder / f"latents_rank00_shard{number:03d}.safetensors", tensors)
            case.checked.update(f"{shard}.{key}" for key in _SHARD_TENSORS)
        _check_statistics(case, folder)
        multiplier = float(re.search(r"latent_multiplier=([\d.]+\d)", case.facts["what"])[1])
        data = LatentDataset(folder, latent_multiplier=multiplier)
        for outcome, coin in (("noflip", 0.75), ("flip", 0.25)):
            items = [data.item(index, coin) for index in range(len(data))]
            case.check(f"items.{outcome}", torch.stack([item.z for item in items]))
            case.check("items.label", torch.tensor([item.label for item in items]))
    _require_all(case)


def _write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


def _check_statistics(case: Case, folder: Path) -> None:
    """The reference's rule: at most 10,000 unmirrored latents; these are fewer, so all of them."""
    data = LatentDataset(folder, latent_norm=False)
    statistics = sampled_statistics(len(data), lambda index: data.item(index, coin=1.0).z, seed=0)
    write_statistics(folder, statistics.mean, statistics.std)
    written = torch.load(folder / "latents_stats.pt", weights_only=True)
    for name in ("mean", "std"):
        case.check(f"stats.{name}", written[name])


def _require_all(case: Case) -> None:
    unknown = set(case.tensors) - case.checked
    assert not unknown, f"{case.name}: not compared: {sorted(unknown)}"
