import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from common.errors import DataError, UserError
from common.random import python_generator
from data.photographs import PHOTOGRAPHS, CropRecipe, area_resize, build_photographs, draw_box, training_crops

SMALL = CropRecipe(train_count=20, shard_size=7, held_out_count=5, stored_size=32, resolution=16)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_photographs(tmp_path_factory.mktemp("photographs"), SMALL)


def test_area_resize_of_a_divisible_side_is_the_block_mean():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    means = pixels.reshape(6, 4, 6, 4, 3).mean(axis=(1, 3))
    assert np.array_equal(area_resize(pixels, 6), np.floor(means + 0.5).astype(np.uint8))


def test_area_resize_weighs_partly_covered_pixels_by_their_share():
    pixels = np.zeros((3, 3, 3), np.uint8)
    pixels[:, 1] = 90
    assert area_resize(pixels, 2)[:, :, 0].tolist() == [[30, 30], [30, 30]]


def test_boxes_lie_inside_and_reach_both_ends_of_the_range_of_sides():
    boxes = [draw_box(300, 451, 64, python_generator(0, "test", k)) for k in range(500)]
    assert all(box.left + box.side <= 451 and box.top + box.side <= 300 for box in boxes)
    assert min(box.side for box in boxes) < 67 and max(box.side for box in boxes) > 290
    middle = np.median([box.side for box in boxes])
    assert abs(middle - (64 * 300) ** 0.5) < 12  # the median of a log-uniform draw is the geometric mean


def test_a_photograph_below_the_smallest_side_is_an_error():
    with pytest.raises(DataError, match="451 x 300 pixels has no crop of side 301"):
        draw_box(300, 451, 301, python_generator(0, "test"))


def test_no_training_crop_comes_from_a_held_out_photograph(built):
    drawn = set()
    for path in sorted(built.shard_dir.glob("*.tar")):
        with tarfile.open(path) as shard:
            for member in shard.getmembers():
                if member.name.endswith(".cls"):
                    drawn.add(list(PHOTOGRAPHS)[int(shard.extractfile(member).read())])
    assert drawn and not drawn & {"chelsea", "flower"}
    assert sorted(path.name for path in built.held_out_dir.iterdir()) == [
        "chelsea_000.png",
        "chelsea_001.png",
        "chelsea_002.png",
        "flower_000.png",
        "flower_001.png",
    ]


def test_samples_hold_image_class_and_box(built):
    with tarfile.open(built.shard_dir / "photographs-000000.tar") as shard:
        names = shard.getnames()
        assert [name.partition(".")[2] for name in names[:3]] == ["cls", "png", "json"]
        image = Image.open(io.BytesIO(shard.extractfile(names[1]).read()))
        note = json.loads(shard.extractfile(names[2]).read())
    assert image.size == (32, 32) and image.mode == "RGB"
    box = note["box"]
    expected = PHOTOGRAPHS[note["name"]].pixels()[box["top"] :, box["left"] :][: box["side"], : box["side"]]
    assert np.array_equal(np.asarray(image), area_resize(expected, 32))


def test_equal_arguments_give_equal_bytes_and_another_seed_does_not(built, tmp_path):
    again = build_photographs(tmp_path, SMALL)
    name = "photographs-000001.tar"
    assert (again.shard_dir / name).read_bytes() == (built.shard_dir / name).read_bytes()
    assert again.index_path.read_bytes() == built.index_path.read_bytes()
    other = build_photographs(tmp_path, CropRecipe(**{**SMALL.__dict__, "seed": 1}))
    assert not other.reused
    assert (other.shard_dir / name).read_bytes() != (built.shard_dir / name).read_bytes()


def test_a_complete_build_is_reused_and_a_damaged_one_is_not(tmp_path):
    assert not build_photographs(tmp_path, SMALL).reused
    assert build_photographs(tmp_path, SMALL).reused
    (tmp_path / "heldout" / "flower_000.png").write_bytes(b"cut short")
    assert not build_photographs(tmp_path, SMALL).reused
    assert build_photographs(tmp_path, SMALL).reused


def test_files_of_somebody_else_are_never_removed(tmp_path):
    (tmp_path / "heldout").mkdir()
    (tmp_path / "heldout" / "holiday.png").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"heldout: found 'holiday.png'"):
        build_photographs(tmp_path, SMALL)
    assert (tmp_path / "heldout" / "holiday.png").exists()


def test_the_index_counts_every_crop_and_states_licences(built):
    index = json.loads(built.index_path.read_text())
    crops = {entry["name"]: entry["crops"] for entry in index["photographs"]}
    assert sum(crops.values()) == 25 and crops["chelsea"] == 3 and crops["flower"] == 2
    assert all(entry["licence"] and entry["credit"] for entry in index["photographs"])
    assert next(e for e in index["photographs"] if e["name"] == "flower")["licence"].startswith("CC BY 2.0")


def test_everyday_photographs_are_drawn_about_four_times_as_often():
    recipe = CropRecipe(train_count=1500, stored_size=8)
    kinds = [crop.photograph.kind for crop in training_crops(recipe)]
    assert abs(kinds.count("everyday") / 1500 - 20 / 31) < 0.05


def test_an_unknown_photograph_is_named_with_the_closest():
    with pytest.raises(UserError, match=r"'chelsey' is not known. Closest: chelsea"):
        CropRecipe(held_out=("chelsey",))
