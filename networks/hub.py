"""Models on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from common.errors import CheckpointError, first_line

_MODEL_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_model_id(name: str | Path) -> bool:
    """Whether a name that is no folder can be `organisation/name` on the hub."""
    return isinstance(name, str) and _MODEL_ID.fullmatch(name) is not None and not name.startswith((".", "/", "~"))


def download_model(model_id: str, revision: str | None = None, subfolder: str | None = None) -> Path:
    """A model's folder in the hub's local cache, fetched if it is not there yet.

    Raises: CheckpointError if it is neither there nor can be fetched.
    """
    from huggingface_hub import snapshot_download

    patterns = None if subfolder is None else [f"{subfolder}/*"]
    try:
        folder = snapshot_download(model_id, revision=revision, allow_patterns=patterns)
    except (OSError, ValueError) as error:  # what the hub's client raises for network, access and unknown names
        raise CheckpointError(
            f"{model_id}: is no folder here, and could not be fetched from the hub ({first_line(error)}). "
            f"Check the name and `hf auth login`; without a network, run `hf download {model_id} --local-dir DIR` on a "
            "machine that has one, bring the folder here and give its path."
        ) from error
    return Path(folder) / (subfolder or "")


def upload_model(folder: Path, model_id: str, private: bool, message: str, revision: str | None) -> str:
    """Put a model folder on the hub, which makes the repository if there is none; returns its address.

    Raises: CheckpointError if the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(model_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=model_id, folder_path=folder, commit_message=message, revision=revision)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{model_id}: could not be written to the hub ({first_line(error)}). Log in with `hf auth login` and "
            "check that you may write there; `save_pretrained` writes the same folder to disk."
        ) from error
    return str(address)
