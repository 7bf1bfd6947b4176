"""Reading and writing tokenizers: this project's checkpoint folders, the reference's files, and the names in both.

`names` holds the tables own <-> reference names, `reference` the reference's files, `loading` makes tokenizers of both.
"""

from networks.checkpoint.loading import (
    build_tokenizer,
    has_noise_maps,
    load_tokenizer,
    load_weights,
    read_model_config,
    read_weights,
    require_same_encoder,
)
from networks.checkpoint.names import to_own_name, to_reference_name
from networks.checkpoint.reference import read_reference_weights

__all__ = [
    "build_tokenizer",
    "has_noise_maps",
    "load_tokenizer",
    "load_weights",
    "read_model_config",
    "read_reference_weights",
    "read_weights",
    "require_same_encoder",
    "to_own_name",
    "to_reference_name",
]
