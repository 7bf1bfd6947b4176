"""The published files of autoregressive models."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigError
from configs.schema import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
EPOCH = 1281.167  # thousand images


@pytest.mark.parametrize(
    ("name", "model_type", "epochs"),
    [
        ("b", "GPT-B", 300),
        ("l", "GPT-L", 300),
        ("xl", "GPT-XL", 200),
        ("xxl", "GPT-XXL", 200),
        ("2b", "GPT-2B", 200),
        ("3b", "GPT-3B", 200),
    ],
)
def test_each_file_has_the_published_settings(name: str, model_type: str, epochs: int) -> None:
    config = load_config(CONFIGS / f"gpt_c2i_{name}.yaml").config
    assert config.network.model_type == model_type and config.run.run_dir == f"runs/gpt_c2i_{name}"
    assert config.training.total_kimg == pytest.approx(epochs * EPOCH, abs=0.06)
    assert (config.training.batch_size, config.training.ema_decay, config.training.precision) == (512, 0.9999, "bf16")
    adam = config.optimizer
    assert (adam.lr, adam.betas, adam.weight_decay, adam.max_grad_norm) == (1e-4, (0.9, 0.95), 0.05, 1.0)
    assert not adam.decay_vectors and not adam.cosine_decay and adam.warmup_kimg == 0
    network = config.network
    assert (network.vocab_size, network.block_size, network.num_classes, config.data.resolution) == (
        16384,
        256,
        1000,
        336,
    )
    assert config.data.crop == "adm"
    dropped = (network.class_dropout_prob, network.token_dropout_p, network.resid_dropout_p, network.ffn_dropout_p)
    assert dropped == (0.1,) * 4 and network.attn_dropout_p == network.drop_path_rate == 0
    sample = config.sample
    assert (sample.cfg_scale, sample.cfg_interval, sample.temperature, sample.top_k, sample.top_p) == (1.5, -1, 1, 0, 1)


def test_a_misspelt_size_is_reported_with_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"network\.model_type: found 'GPT-XXS'\. Closest: GPT-XX?L"):
        load_config(CONFIGS / "gpt_c2i_b.yaml", ["network.model_type=GPT-XXS"])


def test_a_dry_run_counts_parameters_and_tokens() -> None:
    from trainer.systems.gpt_c2i import GPTSystem

    changes = ["network={n_layer: 2, n_head: 2, dim: 16, vocab_size: 12, block_size: 16, num_classes: 5}"]
    config = load_config(CONFIGS / "gpt_c2i_b.yaml", [*changes, "training.batch_size=4", "run.device=cpu"]).config
    text = GPTSystem.describe(config, ranks=2)
    assert "4 x 4 of 12 codes, micro-batches of 2 on 2 ranks" in text
    assert "27,184 (0.03 M)" in text and "(without the tokenizer)" not in text
