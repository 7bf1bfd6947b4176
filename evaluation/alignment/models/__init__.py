"""Models whose features are compared, by kind.

Adding one: a section in `evaluation/alignment/config.py` that names its kind, a file here with a `load` function, and a
line in `FEATURE_MODELS`.
"""

from __future__ import annotations

from common.registry import Registry

FEATURE_MODELS: Registry = Registry(
    "kind of feature model",
    {
        "vfm": "evaluation.alignment.models.vfm:load",
        "tokenizer": "evaluation.alignment.models.tokenizer:load",
        "autoencoder": "evaluation.alignment.models.autoencoder:load",
        "diffusion": "evaluation.alignment.models.diffusion:load",
    },
)
