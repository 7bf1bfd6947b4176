"""The real photographs that come with scikit-image and scikit-learn, cut into training and evaluation crops.

installed packages -> photographs -> random crops -> WebDataset shards (training) | PNG folder (held out)

Nothing is downloaded and no photograph is copied into the project: the files are read where pip put them. The split
is by photograph, so that no part of a held-out photograph is ever trained on. Crops are drawn with a side that is
log-uniform up to the whole short side, and reduced by exact area averaging.
"""

from __future__ import annotations

import importlib.util
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from common.errors import DataError, UserError
from common.files import sha256_of, write_atomically, write_json_atomically
from common.random import python_generator
from common.registry import Registry
from data.shards import SIZES_FILE
from data.write_shards import NewSample, encode_image, write_shards

INDEX_NAME = "photographs.json"
SHARD_FOLDER = "shards"
HELD_OUT_FOLDER = "heldout"
SHARD_PREFIX = "photographs"
LAYOUT_VERSION = 1

# How often a photograph is drawn for training, relative to one of weight 1.
DRAW_WEIGHTS = {"everyday": 4, "scientific": 1, "grey": 1}


@dataclass(frozen=True)
class Photograph:
    """One photograph inside an installed package.

    Args:
        package, file: where it is; `file` is relative to the package's folder.
        kind: decides how often it is drawn for training (`DRAW_WEIGHTS`).
    """

    name: str
    package: Literal["skimage", "sklearn"]
    file: str
    kind: Literal["everyday", "scientific", "grey"]
    licence: str
    credit: str

    def path(self) -> Path:
        """The file in the installed package. Raises DataError if the package or the file is missing."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.origin is None:
            raise DataError(
                f"{self.name}: package {self.package} is not installed; run pip install -r requirements.txt."
            )
        path = Path(spec.origin).parent / self.file
        if not path.is_file():
            raise DataError(
                f"{path}: the installed {self.package} has no photograph {self.name!r}, expected one that comes with "
                "the wheel; reinstall the version range of requirements.txt."
            )
        return path

    def pixels(self) -> np.ndarray:
        """The whole photograph, uint8 [H, W, 3]; grey ones have three equal channels."""
        with Image.open(self.path()) as image:
            return np.asarray(image.convert("RGB"))


def _skimage(name: str, file: str, kind: str, licence: str, credit: str) -> Photograph:
    return Photograph(name, "skimage", f"data/{file}", kind, licence, credit)


_CC0 = "CC0"
_PUBLIC = "public domain"
_CC_BY = "CC BY 2.0 (https://creativecommons.org/licenses/by/2.0/)"

# The position in this table is the class label of a photograph's crops, whichever photographs are held out.
_TABLE = (
    _skimage("astronaut", "astronaut.png", "everyday", _PUBLIC, "NASA Great Images (Eileen Collins)"),
    _skimage("chelsea", "chelsea.png", "everyday", _CC0, "Stefan van der Walt"),
    _skimage("coffee", "coffee.png", "everyday", _CC0, "Rachel Michetti, courtesy of Pikolo Espresso Bar"),
    _skimage("rocket", "rocket.jpg", "everyday", _PUBLIC, "SpaceX (launch of DSCOVR)"),
    _skimage(
        "motorcycle",
        "motorcycle_left.png",
        "everyday",
        "none stated; read from the installed package, not redistributed",
        "Middlebury 2014 stereo benchmark: D. Scharstein, H. Hirschmüller, Y. Kitajima, G. Krathwohl, N. Nesic, "
        "X. Wang, P. Westling: High-resolution stereo datasets with subpixel-accurate ground truth, GCPR 2014",
    ),
    Photograph(
        "china",
        "sklearn",
        "datasets/images/china.jpg",
        "everyday",
        _CC_BY,
        "danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035/",
    ),
    Photograph(
        "flower",
        "sklearn",
        "datasets/images/flower.jpg",
        "everyday",
        _CC_BY,
        "vultilion, https://www.flickr.com/photos/vultilion/6056698931/ (scikit-learn's README: danielbuechele)",
    ),
    _skimage("retina", "retina.jpg", "scientific", _CC0, "Mikael Häggström, Medical gallery 2014"),
    _skimage("hubble_deep_field", "hubble_deep_field.jpg", "scientific", _PUBLIC, "NASA, HubbleSite"),
    _skimage(
        "immunohistochemistry",
        "ihc.png",
        "scientific",
        "no known copyright restrictions",
        "Center for Microscopy And Molecular Imaging (CMMI)",
    ),
    _skimage("camera", "camera.png", "grey", _CC0, "Lav Varshney"),
    _skimage("moon", "moon.png", "grey", _PUBLIC, "scikit-image"),
    _skimage("brick", "brick.png", "grey", _CC0, "CC0Textures, Bricks25"),
    _skimage("grass", "grass.png", "grey", _CC0, "linolafett, DeviantArt"),
    _skimage("gravel", "gravel.png", "grey", _CC0, "CC0Textures, Gravel04"),
    _skimage("coins", "coins.png", "grey", "no known copyright restrictions", "Brooklyn Museum Collection"),
    _skimage("cell", "cell.png", "grey", _CC0, "Paul Müller et al., Optics Express 26(8), 2018"),
    _skimage("clock", "clock_motion.png", "grey", _PUBLIC, "Stefan van der Walt"),
)
PHOTOGRAPHS: Registry = Registry("photograph", {photograph.name: photograph for photograph in _TABLE})


@dataclass(frozen=True)
class CropRecipe:
    """Everything that decides the bytes of the crops, besides the photographs themselves.

    Args:
        held_out: names of the photographs that are evaluated on and never trained on.
        stored_size: side of the stored training crops in pixels, also the smallest side that is cut out.
        train_count: number of training crops.
        shard_size: training crops per shard.
        resolution: side of the evaluation crops in pixels, also the smallest side that is cut out.
        held_out_count: number of evaluation crops, shared evenly among the held-out photographs.
        seed: key of every draw.
    """

    held_out: tuple[str, ...] = ("chelsea", "flower")
    stored_size: int = 96
    train_count: int = 3000
    shard_size: int = 500
    resolution: int = 64
    held_out_count: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.held_out:
            PHOTOGRAPHS[name]
        for key in ("stored_size", "train_count", "shard_size", "resolution", "held_out_count"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}: found {getattr(self, key)}, expected at least 1.")
        if not self.held_out or len(set(self.held_out)) != len(self.held_out):
            raise UserError(f"held_out: found {list(self.held_out)}, expected one or more different photographs.")
        if self.held_out_count < len(self.held_out):
            raise UserError(f"held_out_count: found {self.held_out_count}, expected one per held-out photograph.")

    def training_photographs(self) -> list[Photograph]:
        """All photographs that are not held out."""
        return [photograph for photograph in PHOTOGRAPHS.values() if photograph.name not in self.held_out]


@dataclass(frozen=True)
class Box:
    """A square part of a photograph, in whole pixels."""

    left: int
    top: int
    side: int

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        """The part of `pixels`, uint8 [H, W, 3] -> [side, side, 3]."""
        return pixels[self.top : self.top + self.side, self.left : self.left + self.side]


@dataclass(frozen=True)
class Crop:
    """One crop: its photograph, where it was cut, and its pixels, uint8 [size, size, 3]."""

    key: str
    photograph: Photograph
    box: Box
    pixels: np.ndarray

    def png(self) -> bytes:
        """The pixels as a PNG file."""
        return encode_image(self.pixels, "png")[0]

    def sample(self) -> NewSample:
        """The crop as a training sample: image, class = place of the photograph in the table, name and box."""
        label = list(PHOTOGRAPHS).index(self.photograph.name)
        return NewSample(self.key, self.png(), "png", label, {"name": self.photograph.name, "box": asdict(self.box)})


@dataclass(frozen=True)
class PhotographSet:
    """What `build_photographs` left behind.

    Args:
        shard_dir: folder of the training shards.
        held_out_dir: folder of the evaluation PNGs.
        index_path: JSON with sources, licences, credits and counts.
        reused: whether everything was there already.
    """

    shard_dir: Path
    held_out_dir: Path
    index_path: Path
    reused: bool


@lru_cache(maxsize=256)
def _area_weights(side: int, size: int) -> np.ndarray:
    """Overlap of `size` equal cells with `side` pixels, [size, side], in units of 1/size pixel: whole numbers."""
    cell_edges = np.arange(size + 1) * side
    pixel_edges = np.arange(side + 1) * size
    overlap = np.minimum(cell_edges[1:, None], pixel_edges[None, 1:]) - np.maximum(
        cell_edges[:-1, None], pixel_edges[None, :-1]
    )
    return np.clip(overlap, 0, None).astype(np.float64)


def area_resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Exact area average of a square image, rounded to the nearest level (halves up).

    Every sum is a whole number below 2^53, so that the result is the same on every machine.

    Args:
        pixels: uint8 [side, side, 3].
        size: new side; a side smaller than `size` is enlarged by repetition of area.
    Returns: uint8 [size, size, 3].
    """
    side = pixels.shape[0]
    assert pixels.shape == (side, side, 3) and pixels.dtype == np.uint8
    weights = _area_weights(side, size)
    channels = pixels.astype(np.float64).transpose(2, 0, 1)
    sums = (weights @ channels @ weights.T).astype(np.int64)
    return ((2 * sums + side * side) // (2 * side * side)).astype(np.uint8).transpose(1, 2, 0)


def draw_box(height: int, width: int, smallest: int, generator: random.Random) -> Box:
    """A square whose side is log-uniform between `smallest` and the whole short side, anywhere in the image.

    Raises: DataError if the image is smaller than `smallest`.
    """
    short = min(height, width)
    if short < smallest:
        raise DataError(
            f"a photograph of {width} x {height} pixels has no crop of side {smallest}; ask for a smaller one."
        )
    side = round(math.exp(generator.uniform(math.log(smallest), math.log(short))))
    side = min(max(side, smallest), short)
    return Box(generator.randint(0, width - side), generator.randint(0, height - side), side)


def training_crops(recipe: CropRecipe) -> Iterator[Crop]:
    """The training crops in order; crop i depends on the recipe's seed and on i only."""
    photographs = recipe.training_photographs()
    weights = [DRAW_WEIGHTS[photograph.kind] for photograph in photographs]
    pixels = {photograph.name: photograph.pixels() for photograph in photographs}
    for index in range(recipe.train_count):
        generator = python_generator(recipe.seed, "training crop", index)
        photograph = generator.choices(photographs, weights)[0]
        key = f"{index:06d}_{photograph.name}"
        yield _crop(key, photograph, pixels[photograph.name], recipe.stored_size, generator)


def held_out_crops(recipe: CropRecipe) -> Iterator[Crop]:
    """The evaluation crops: the held-out photographs take turns, and each numbers its crops from 0."""
    pixels = {name: PHOTOGRAPHS[name].pixels() for name in recipe.held_out}
    for index in range(recipe.held_out_count):
        number, turn = divmod(index, len(recipe.held_out))
        name = recipe.held_out[turn]
        generator = python_generator(recipe.seed, "held-out crop", name, number)
        yield _crop(f"{name}_{number:03d}", PHOTOGRAPHS[name], pixels[name], recipe.resolution, generator)


def _crop(key: str, photograph: Photograph, pixels: np.ndarray, size: int, generator: random.Random) -> Crop:
    box = draw_box(*pixels.shape[:2], size, generator)
    return Crop(key, photograph, box, area_resize(box.cut(pixels), size))


def build_photographs(
    output_dir: str | Path, recipe: CropRecipe, progress: Callable[[int, int], None] = lambda done, total: None
) -> PhotographSet:
    """Write training shards, evaluation crops and the index, or reuse them if they are there for the same recipe.

    The index carries the hash of every file and is written last, so an interrupted build is never taken for a good
    one. Equal recipes and photographs give equal bytes.

    Args:
        output_dir: gets `shards/`, `heldout/` and `photographs.json`.
        progress: called with (crops done, all crops).
    Raises: DataError if a photograph is missing, or if a folder to be written holds files of somebody else.
    """
    output_dir = Path(output_dir)
    result = PhotographSet(output_dir / SHARD_FOLDER, output_dir / HELD_OUT_FOLDER, output_dir / INDEX_NAME, True)
    description = _describe(recipe)
    if _is_complete(result.index_path, description):
        return result
    result.index_path.unlink(missing_ok=True)
    _clear(result.shard_dir, f"{SHARD_PREFIX}-*.tar")
    _clear(result.held_out_dir, "*_[0-9][0-9][0-9].png")

    counts: Counter[str] = Counter()
    total = recipe.train_count + recipe.held_out_count

    def counted(crops: Iterator[Crop]) -> Iterator[Crop]:
        for crop in crops:
            counts[crop.photograph.name] += 1
            progress(counts.total(), total)
            yield crop

    samples = (crop.sample() for crop in counted(training_crops(recipe)))
    files = write_shards(samples, result.shard_dir, recipe.shard_size, SHARD_PREFIX).shards
    for crop in counted(held_out_crops(recipe)):
        path = result.held_out_dir / f"{crop.key}.png"
        write_atomically(path, lambda partial, crop=crop: partial.write_bytes(crop.png()))
        files.append(path)
    for entry in description["photographs"]:
        entry["crops"] = counts[entry["name"]]
    description["files"] = {str(path.relative_to(output_dir)): sha256_of(path) for path in files}
    write_json_atomically(result.index_path, description)
    return PhotographSet(result.shard_dir, result.held_out_dir, result.index_path, False)


def _describe(recipe: CropRecipe) -> dict[str, Any]:
    """The index without what is only known after the build."""
    entries = []
    for label, photograph in enumerate(PHOTOGRAPHS.values()):
        path = photograph.path()
        with Image.open(path) as image:
            width, height = image.size
        entries.append(
            {
                "name": photograph.name,
                "label": label,
                "split": "held out" if photograph.name in recipe.held_out else "training",
                "kind": photograph.kind,
                "width": width,
                "height": height,
                "package": photograph.package,
                "file": photograph.file,
                "sha256": sha256_of(path),
                "licence": photograph.licence,
                "credit": photograph.credit,
            }
        )
    settings = asdict(recipe) | {"held_out": list(recipe.held_out)}
    return {
        "layout_version": LAYOUT_VERSION,
        "recipe": settings,
        "draw_weights": DRAW_WEIGHTS,
        "photographs": entries,
    }


def _is_complete(index_path: Path, description: dict[str, Any]) -> bool:
    """Whether the index describes the same build and every file has the hash that it states."""
    try:
        index = json.loads(index_path.read_text(encoding="utf-8"))
        files = index.pop("files")
        for entry in index["photographs"]:
            del entry["crops"]
        return index == description and all(
            sha256_of(index_path.parent / name) == expected for name, expected in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _clear(folder: Path, pattern: str) -> None:
    """Remove the files of an earlier build; refuse to touch anything else."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {path for own in (pattern, SIZES_FILE, ".*.partial") for path in folder.glob(own)}
    foreign = sorted(path.name for path in folder.iterdir() if path not in own and path.name != ".shard_index")
    if foreign:
        raise DataError(
            f"{folder}: found {foreign[0]!r} ({len(foreign)} files that are not of this command), expected an empty "
            "folder or one of its own; choose another --output-dir."
        )
    for path in own:
        path.unlink()


def parse_names(text: str) -> tuple[str, ...]:
    """ "a,b" -> ("a", "b")."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
