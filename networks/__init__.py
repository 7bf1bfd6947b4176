"""Networks compute tensors: encoders, bottleneck, decoder. Import what you need from the modules.

`VFMVAE` and `VFMTok`, the models for users, are also here; they are imported when they are asked for.

Adding a tokenizer: write `networks/<tokenizer>.py` with a network that does what `VFMVAETokenizer` does, and a model of
its configuration, and add an entry to `TOKENIZERS`; checkpoints and tools then know it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.registry import Registry, import_object


@dataclass(frozen=True)
class TokenizerEntry:
    """A tokenizer that the `config.json` of a checkpoint may name as its `model_type`.

    Args:
        network: `module:Class` of the network.
        config: `module:Model` of what the `config.json` says.
        relations: `module:NAME` of the rules between its keys.
        names: `module:NAME` of the table own <-> reference names of its weights.
        discriminator_names: the same of its discriminators' weights.
    """

    network: str
    config: str
    relations: str
    names: str
    discriminator_names: str


TOKENIZERS: Registry = Registry(
    "tokenizer",
    {
        "vfm_vae": TokenizerEntry(
            "networks.vfm_vae:VFMVAETokenizer",
            "networks.config:ModelConfig",
            "networks.config:MODEL_RELATIONS",
            "networks.checkpoint.names:TOKENIZER",
            "networks.discriminators.loading:VFM_VAE_ROWS",
        ),
        "vfmtok": TokenizerEntry(
            "networks.vfmtok.tokenizer:VFMTokTokenizer",
            "networks.vfmtok.config:VFMTokConfig",
            "networks.vfmtok.config:VFMTOK_RELATIONS",
            "networks.checkpoint.names:VFMTOK",
            "networks.checkpoint.names:VFMTOK_DISCRIMINATOR",
        ),
    },
)
_MODELS = {"VFMVAE": "networks.autoencoder:VFMVAE", "VFMTok": "networks.vfmtok.model:VFMTok"}


def __getattr__(name: str) -> Any:
    if name in _MODELS:
        return import_object(_MODELS[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
