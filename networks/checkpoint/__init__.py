"""Reading and writing tokenizers: this project's checkpoint folders, the reference's files, and the names in both.

names       tables own <-> reference names
reference   the reference's `.pth` files
folder      this project's folders
origin      where weights come from, and their licence
fit         whether weights fit a network
loading     a tokenizer from either
convert     one into the other
"""

from networks.checkpoint.folder import read_model_config
from networks.checkpoint.loading import (
    build_tokenizer,
    load_tokenizer,
    load_weights,
    names_of,
    origin_of,
    read_weights,
    require_same_encoder,
)
from networks.checkpoint.names import to_own_name, to_reference_name

__all__ = [
    "build_tokenizer",
    "load_tokenizer",
    "load_weights",
    "names_of",
    "origin_of",
    "read_model_config",
    "read_weights",
    "require_same_encoder",
    "to_own_name",
    "to_reference_name",
]
