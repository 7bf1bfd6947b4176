"""The Inception network of 2015, whose features FID, sFID, Inception Score, precision and recall are defined on."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import torch
from torch import Tensor

from common.errors import CheckpointError, UserError
from common.files import sha256_of
from common.torch_file import read_torch_file
from evaluation.extractors.base import Extractor, ImageFeatures, MetricNames, first_channels

WEIGHTS_FILE = "weights-inception-2015-12-05-6726825d.pth"
PUBLISHED_AT = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS_FILE}"
SHA256_START = "6726825d"
SPATIAL_CHANNELS = 7  # of 192: 17 * 17 * 7 = 2023 features

log = logging.getLogger(__name__)


def find_inception(weights_path: str | Path | None) -> Path:
    """The weights: the given file, else the one in the torch hub cache.

    Raises: UserError that names the file and where it is published; it is never downloaded.
    """
    path = Path(weights_path).expanduser() if weights_path else Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(
            f"Inception weights: {path} does not exist. FID and its relatives need {WEIGHTS_FILE}, published at "
            f"{PUBLISHED_AT}; put it there, or say where it is (--inception-weights, in a configuration "
            "validation.inception_path). It is never downloaded. Without it, --extractor efficientnet_lite0 (in a "
            "configuration validation.frechet), whose weights come with the requirements, gives numbers of its own."
        )
    return path


class InceptionExtractor(Extractor):
    """torch-fidelity's `inception-v3-compat`: the TensorFlow graph of 2015 with its resize to 299 x 299.

    `pool`: 2048 features. `spatial`: first 7 channels of the 1x1 branch of the third 17x17 block, as sFID takes them.
    `logits`: 1008 classes.

    Args:
        state: the published state dict.
        origin: where it came from.
    """

    name = "inception"

    def __init__(self, state: dict[str, Tensor], origin: str):
        super().__init__(origin)
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # torch-fidelity unpickles what it is given without restriction: give it a copy of what was read safely.
        copy = io.BytesIO()
        torch.save(state, copy)
        copy.seek(0)
        layers = ["2048", "logits_unbiased"]
        self.network = FeatureExtractorInceptionV3(self.name, layers, feature_extractor_weights_path=copy)
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep_branch)
        self._branch: Tensor | None = None

    @classmethod
    def load(cls, weights_path: str | Path | None) -> InceptionExtractor:
        path = find_inception(weights_path)
        digest = sha256_of(path)
        origin = f"{path.name}, SHA-256 {digest}"
        if not digest.startswith(SHA256_START):
            log.warning("%s is not %s as published: its numbers do not compare with others.", path, WEIGHTS_FILE)
            origin += ", not the published file"
        try:
            return cls(read_torch_file(path), origin)
        except (RuntimeError, TypeError) as error:  # what load_state_dict raises
            raise CheckpointError(
                f"{path}: its entries are not those of {WEIGHTS_FILE} ({' '.join(str(error).split())[:300]}); get the "
                f"file from {PUBLISHED_AT}."
            ) from error

    @property
    def metric_names(self) -> MetricNames:
        """The names that this network alone may give."""
        return MetricNames(
            frechet="fid",
            spatial_frechet="sfid",
            score="inception_score",
            kernel="kid",
            precision="precision",
            recall="recall",
        )

    def run(self, images: Tensor) -> ImageFeatures:
        pool, logits = self.network(images)
        assert self._branch is not None, "the hook has run"
        spatial, self._branch = first_channels(self._branch, SPATIAL_CHANNELS), None
        return ImageFeatures(pool, spatial, logits)

    def _keep_branch(self, module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._branch = output
