"""The published files: the stages say what the reference's say, and the annotated file names every key."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from common.config import StrictModel, read_yaml, section_class
from configs.schema import EXPERIMENTS, dump, load_config

CONFIGS = Path(__file__).parents[2] / "configs"
DETAILS = CONFIGS / "vfm_vae_details.yaml"
STAGES = ("0_strong_alignment", "1_weak_alignment", "2_ssim_fine_tuning", "3_patchgan_fine_tuning")
# Paths, and what the project decided to say differently.
OWN_WORDS = (
    "run.run_dir",
    "data.path",
    "data.filter_keys_path",
    "encoder.vfm_name",
    "decoder.legacy",
    "training.init_from",
    "logging.wandb_project_name",
    "logging.wandb_run_name",
)


def flat(values: dict, prefix: str = "") -> dict:
    leaves = {}
    for key, value in values.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return leaves


@pytest.mark.parametrize("stage", range(4))
def test_each_stage_equals_the_reference_file_of_that_stage(stage, reference_stage):
    own = load_config(CONFIGS / f"vfm_vae_f16d32_siglip2_stage_{STAGES[stage]}.yaml")
    theirs = load_config(reference_stage(stage))
    left, right = flat(dump(own.config)), flat(dump(theirs.config))
    for key in OWN_WORDS:
        del left[key], right[key]
    assert left == right
    assert own.config.decoder.legacy is False
    assert theirs.config.decoder.legacy is True


@pytest.mark.parametrize(
    ("stage", "losses", "rate", "mode"),
    [
        (0, {"kl": 1e-6, "vf": 5, "l1_pixel": 1, "perceptual": 10, "stylegan_t": 1}, 1e-4, "train_all"),
        (1, {"kl": 1e-6, "vf": 1, "l1_pixel": 1, "perceptual": 10, "stylegan_t": 1}, 1e-4, "train_all"),
        (2, {"l1_pixel": 1, "perceptual": 2, "ssim": 1, "stylegan_t": 1}, 5e-5, "train_decoder"),
        (
            3,
            {"stylegan_t": 1, "patchgan": 1, "feature_matching": 10},
            5e-5,
            "train_the_second_half_decoder",
        ),
    ],
)
def test_each_stage_has_the_published_objective(stage, losses, rate, mode):
    config = load_config(CONFIGS / f"vfm_vae_f16d32_siglip2_stage_{STAGES[stage]}.yaml").config
    enabled = config.enabled_losses()
    multiscale = enabled.pop("multiscale_pixel")
    assert {name: term.weight for name, term in enabled.items()} == losses
    assert multiscale.weights == dict.fromkeys((128, 64, 32, 16, 8), 0.1)
    assert config.optimizer.generator.lr == config.optimizer.discriminator.lr == rate
    assert config.training.train_mode == mode
    assert (config.training.precision, config.decoder.num_fp16_res) == ("fp16", 3)


def test_each_stage_starts_from_the_run_before_it():
    configs = [load_config(CONFIGS / f"vfm_vae_f16d32_siglip2_stage_{stage}.yaml").config for stage in STAGES]
    assert [config.training.init_kimg for config in configs] == [0, 20000, 40000, 41000]
    assert [config.training.total_kimg for config in configs] == [20000, 40000, 41000, 44000]
    assert configs[0].training.init_from is None
    for before, after in itertools.pairwise(configs):
        assert after.training.init_from == before.run.run_dir


# --- the annotated file ----------------------------------------------------------------------------------------


def assert_names_every_key(model: type[StrictModel], values: dict, where: str) -> None:
    """The loader refuses a key that is given twice, so equal key sets mean: each exactly once."""
    assert list(values) == list(model.model_fields), where
    for name, info in model.model_fields.items():
        section = section_class(info.annotation)
        if section:
            assert_names_every_key(section, values[name], f"{where}.{name}")
        elif not info.is_required():
            default = info.get_default(call_default_factory=True)
            given = tuple(values[name]) if isinstance(default, tuple) else values[name]
            assert given == default, f"{where}.{name}"
        assert section or info.is_required() or info.default is not PydanticUndefined


def test_the_annotated_file_names_every_key_once_with_its_default():
    assert_names_every_key(EXPERIMENTS["vfm_vae"], read_yaml(DETAILS), "")


def test_the_annotated_file_is_valid():
    assert load_config(DETAILS).config.run.run_dir == "runs/example"


def required_keys(model: type[StrictModel], prefix: str = "") -> set[str]:
    keys = set()
    for name, info in model.model_fields.items():
        section = section_class(info.annotation)
        keys |= (
            required_keys(section, f"{prefix}{name}.") if section else {prefix + name} if info.is_required() else set()
        )
    return keys


def test_the_annotated_file_explains_every_key_and_marks_what_is_required():
    explained, required, path = set(), set(), []
    for line in DETAILS.read_text(encoding="utf-8").splitlines():
        match = re.match(r"( *)(\w+):(?: [^#]*)?(?:# (.*))?$", line)
        if not match or line.lstrip().startswith("#"):
            continue
        path = [*path[: len(match[1]) // 2], match[2]]
        if match[3]:
            explained.add(match[2])
        if (match[3] or "").startswith("Required."):
            required.add(".".join(path))
    assert required == required_keys(EXPERIMENTS["vfm_vae"])
    assert {key.rpartition(".")[2] for key in flat(read_yaml(DETAILS)) if "weights." not in key} <= explained
