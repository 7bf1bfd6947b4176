"""Configuration of the diffusion transformers: named sizes and the relations between keys."""

from __future__ import annotations

import pytest

from common.config import Source, StrictModel, build, in_section
from common.errors import ConfigError
from networks.diffusion.config import (
    LIGHTNINGDIT_RELATIONS,
    REG_RELATIONS,
    LightningDiTConfig,
    REGSiTConfig,
    Size,
)
from tests.networks.diffusion.tiny import TINY, TINY_REG


class Root(StrictModel):
    """A configuration with a network in it."""

    network: LightningDiTConfig


def test_a_name_gives_the_size() -> None:
    assert LightningDiTConfig(model_type="LightningDiT-XL/1").size() == Size(1, 1152, 28, 16)
    assert LightningDiTConfig(model_type="LightningDiT-L/1").size() == Size(1, 1024, 24, 16)
    assert REGSiTConfig(model_type="SiT-S/2").size() == Size(2, 384, 12, 6)
    assert LightningDiTConfig(**TINY).size() == Size(1, 32, 3, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "LightningDiT-XL/3"}, r"found 'LightningDiT-XL/3'\. Closest: LightningDiT-XL/\d\. Known: "),
        ({"model_type": "LightningDiT-XL/1"}, r"LightningDiT-XL/1 has hidden_size 1152, but hidden_size is 32; leave"),
        ({"depth": None}, "model_type: gives no size, and neither do the keys depth"),
        ({"patch_size": 3}, "input_size: 4 is no multiple of the patch size 3"),
        ({"num_heads": 3}, "hidden_size: 32 cannot be shared among num_heads 3"),
        ({"hidden_size": 30}, "hidden_size: 30 is no multiple of 4"),
        ({"num_heads": 16}, "use_rope: needs heads of a multiple of 4 channels; hidden_size / num_heads is 2"),
    ],
)
def test_keys_that_contradict_one_another_are_named_once(changes: dict, message: str) -> None:
    values = {"network": {**TINY, **changes}}
    with pytest.raises(ConfigError, match=message) as caught:
        build(Root, Source("a.yaml", values), in_section("network", LIGHTNINGDIT_RELATIONS))
    first, *problems = str(caught.value).splitlines()
    assert first == "a.yaml: 1 problem" and len(problems) == 1
    assert problems[0].startswith("  network.")


def test_a_misspelt_key_and_a_bad_value_are_reported_together() -> None:
    values = {**TINY_REG, "z_dim": [3], "class_dropout_prob": 1.0}
    with pytest.raises(ConfigError) as caught:
        build(REGSiTConfig, Source("a.yaml", values), REG_RELATIONS)
    assert "z_dim: unknown key. Closest: z_dims." in str(caught.value)
    assert "class_dropout_prob: found 1.0, expected a value less than 1." in str(caught.value)


def test_size_of_a_configuration_without_one_is_an_error() -> None:
    with pytest.raises(ConfigError, match="model_type: gives no size"):
        LightningDiTConfig().size()
