"""Labels of a batch: class indices and the texts that a JSON map gives them, or captions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.errors import DataError
from data.config import DataConfig
from data.skips import BadSample

LabelKind = Literal["class", "caption"]
LABEL_EXTENSIONS: dict[LabelKind, str] = {"class": "cls", "caption": "txt"}
"""The member of a sample in a shard that holds its label."""

WITHOUT_LABEL: dict[LabelKind, str] = {"class": "no label", "caption": "no caption"}
"""How a sample is reported that has none."""


def label_kind(config: DataConfig) -> LabelKind | None:
    """What has to be read beside the images."""
    if config.label_type == "none":
        return None
    return "caption" if config.label_type == "text" else "class"


def parse_label(kind: LabelKind, content: bytes) -> int | str:
    """What a label file says. Raises: BadSample."""
    try:
        return int(content) if kind == "class" else content.decode("utf-8").strip()
    except ValueError as error:
        expected = "a class index" if kind == "class" else "a text in UTF-8"
        raise BadSample("bad label", f"found {content[:20]!r}, expected {expected}") from error


@dataclass(frozen=True)
class ClassLabels:
    """What the batches say about a sample's class.

    Args:
        with_texts: batches carry class texts.
        texts: class index -> text, or None when there is no map: then the text is the index itself, and any index
            is accepted.
    """

    with_texts: bool
    texts: dict[int, str] | None = None

    def check(self, label: int) -> None:
        """Raise BadSample if there is no such class."""
        if label < 0 or (self.texts is not None and label not in self.texts):
            raise BadSample("bad label", f"class {label} is not among the {len(self.texts or ())} known classes")

    def text(self, label: int) -> str:
        """The text of a class."""
        return str(label) if self.texts is None else self.texts[label]


@dataclass(frozen=True)
class Captions:
    """The batches carry a text for every image."""

    def check(self, label: str) -> None:
        """Raise BadSample if the text is empty."""
        if not label:
            raise BadSample("no caption", "the text is empty")


def build_labels(config: DataConfig) -> ClassLabels | Captions | None:
    """The labels that a config asks for; None for `label_type: none`.

    Raises: DataError if the map of class texts cannot be read.
    """
    if config.label_type == "none":
        return None
    if config.label_type == "text":
        return Captions()
    texts = None if config.cls_to_text_path is None else read_class_texts(config.cls_to_text_path)
    return ClassLabels(with_texts=config.label_type == "cls2text", texts=texts)


def read_class_texts(path: str | Path) -> dict[int, str]:
    """Read a JSON map from class index to text.

    Raises: DataError if the file is missing or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the map of class texts cannot be read ({error}).") from error
    if not isinstance(content, dict) or not all(key.isdecimal() and isinstance(t, str) for key, t in content.items()):
        raise DataError(f'{path}: expected a JSON object from class index to text, such as {{"0": "tench"}}.')
    return {int(key): text for key, text in content.items()}
