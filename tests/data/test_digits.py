"""The digit scans: their split, their size, and shards that are written once."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import DataError
from data.config import DataConfig
from data.decode import decode_image
from data.digits import enlarge, label_of_key, load_digit_scans, write_digit_shards
from data.sources import build_source


def test_every_scan_is_in_one_part_and_all_digits_are_in_both() -> None:
    split = load_digit_scans()
    assert (len(split.training), len(split.held_out)) == (1297, 500)
    numbers = {key.rpartition("_")[2] for part in (split.training, split.held_out) for key in part.keys}
    assert len(numbers) == 1797
    assert np.bincount(split.training.labels).min() > 100 and np.bincount(split.held_out.labels).min() > 30
    assert [label_of_key(key) for key in split.held_out.keys] == split.held_out.labels.tolist()


def test_no_held_out_scan_has_a_twin_among_those_to_train_on() -> None:
    split = load_digit_scans()
    training = {image.tobytes() for image in split.training.images}
    assert not any(image.tobytes() in training for image in split.held_out.images)


def test_scans_keep_their_grey_levels_when_they_are_enlarged() -> None:
    assert (enlarge(np.full((8, 8), 16.0)) == 255).all()
    assert enlarge(np.zeros((8, 8))).shape == (32, 32, 3)
    halves = np.repeat([[0.0, 16.0]], 8, axis=0).repeat(4, axis=1)
    assert enlarge(halves).mean() == pytest.approx(127.5, abs=1)


def test_shards_hold_the_scans_without_loss_and_are_written_once(tmp_path) -> None:
    split = write_digit_shards(tmp_path)
    source = build_source(DataConfig(path=str(tmp_path / "heldout")), seed=0)
    assert len(source) == 500
    place = split.held_out.keys.index(source.key(7))
    np.testing.assert_array_equal(decode_image(source.read_image(7)).pixels, split.held_out.images[place])
    shard = next((tmp_path / "training").glob("*.tar"))
    before = shard.stat().st_mtime_ns
    write_digit_shards(tmp_path)
    assert shard.stat().st_mtime_ns == before


def test_half_written_shards_are_written_again_and_those_of_others_left_alone(tmp_path) -> None:
    write_digit_shards(tmp_path)
    whole = (tmp_path / "heldout" / "digits-000000.tar").read_bytes()
    (tmp_path / "heldout" / "sizes.json").unlink()
    (tmp_path / "heldout" / "digits-000000.tar").write_bytes(whole[:100])
    write_digit_shards(tmp_path)
    assert (tmp_path / "heldout" / "digits-000000.tar").read_bytes() == whole
    (tmp_path / "heldout" / "sizes.json").unlink()
    (tmp_path / "heldout" / "cats.tar").touch()
    with pytest.raises(DataError, match=r"cats\.tar: is no shard of the digit scans"):
        write_digit_shards(tmp_path)


def test_keys_of_other_sets_are_refused() -> None:
    with pytest.raises(DataError, match="'chelsea_001' is no key of a digit scan"):
        label_of_key("chelsea_001")
