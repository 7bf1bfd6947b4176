"""Networks whose features stand for images in Frechet distances, scores, precision and recall.

Adding one: write `evaluation/extractors/<name>.py` with an `Extractor`, and add a line to `EXTRACTORS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from common.registry import Registry, import_object

if TYPE_CHECKING:
    from evaluation.extractors.base import Extractor

EXTRACTORS: Registry = Registry(
    "feature extractor",
    {
        "inception": "evaluation.extractors.inception:InceptionExtractor",
        "efficientnet_lite0": "evaluation.extractors.efficientnet_lite0:EfficientNetLite0Extractor",
    },
)


def load_extractor(name: str, weights_path: str | Path | None = None) -> Extractor:
    """A frozen extractor on the CPU.

    Args:
        name: a name of `EXTRACTORS`.
        weights_path: its weights; None: where they usually are. Nothing is downloaded.
    Raises: UserError if the name is not known, or the weights are missing or do not fit.
    """
    return import_object(EXTRACTORS[name]).load(weights_path)
