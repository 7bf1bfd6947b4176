"""Class labels: which are accepted, and what the map of texts must look like."""

from __future__ import annotations

import pytest

from common.errors import DataError
from data.config import DataConfig
from data.labels import ClassLabels, build_labels, read_class_texts
from data.skips import BadSample


def test_label_type_decides_what_batches_carry(tmp_path):
    (tmp_path / "texts.json").write_text('{"0": "tench", "7": "cock"}')
    texts = str(tmp_path / "texts.json")
    assert build_labels(DataConfig(path="x")) is None
    assert build_labels(DataConfig(path="x", label_type="cls2id")) == ClassLabels(False)
    labels = build_labels(DataConfig(path="x", label_type="cls2text", cls_to_text_path=texts))
    assert labels == ClassLabels(True, {0: "tench", 7: "cock"}) and labels.text(7) == "cock"


@pytest.mark.parametrize("texts", [{0: "a", 2: "c"}, None])
def test_unknown_class_is_a_bad_sample(texts):
    labels = ClassLabels(True, texts)
    labels.check(2)
    for wrong in (-1, *([1, 3] if texts else [])):
        with pytest.raises(BadSample, match="bad label"):
            labels.check(wrong)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"a": "tench"}', '{"0": 1}'])
def test_map_of_texts_that_does_not_fit_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "texts.json").write_text(content)
    with pytest.raises(DataError, match=r"texts\.json: "):
        read_class_texts(tmp_path / "texts.json")
