"""Index of tar shards: which samples a shard holds, and where their bytes are.

A shard is scanned once, header by header. The index is kept as JSON beside the shards (or in a cache folder where
that cannot be written) and holds as long as size and modification time of the shard do.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tqdm import tqdm

from common.files import write_text_atomically
from data.listing import list_files
from data.skips import Skip

logger = logging.getLogger(__name__)

SIZES_FILE = "sizes.json"
"""File beside shards that says how many samples each holds, as WebDataset and its users write it."""

INDEX_VERSION = 1
TAR_BLOCK = 512
PROGRESS_FROM_SHARDS = 16

# The sample key of webdataset: the path up to the first dot of the file name; the rest is the extension.
_MEMBER_NAME = re.compile(r"((?:.*/|)[^./]+)\.([^/]+)", re.DOTALL)


class Extent(NamedTuple):
    """Where the bytes of a member lie inside a shard."""

    offset: int
    size: int


@dataclass(frozen=True)
class ShardIndex:
    """The complete samples of one shard: key -> extension (lower case) -> extent, and what is wrong with it."""

    shard: str
    samples: dict[str, dict[str, Extent]]
    problems: tuple[Skip, ...] = ()


def split_member_name(name: str) -> tuple[str, str] | None:
    """(sample key, lower-case extension) of a member's path, or None if it belongs to no sample."""
    match = _MEMBER_NAME.fullmatch(name)
    return (match[1], match[2].lower()) if match else None


def list_shards(path: Path) -> list[str]:
    """Names of the shards at `path` (a folder, searched recursively, or one .tar file), relative to `shard_root`."""
    return [path.name] if path.is_file() else list_files(path, [".tar"])


def shard_root(path: Path) -> Path:
    """The folder that shard names are relative to."""
    return path.parent if path.is_file() else path


# --- scanning ------------------------------------------------------------------------------------------------


def scan_shard(root: Path, shard: str) -> ShardIndex:
    """Read the headers of the shard of that name below `root`: `scan_file`, or the problem "missing shard"."""
    try:
        with open(root / shard, "rb") as file:
            return scan_file(file, shard)
    except FileNotFoundError:
        return ShardIndex(shard, {}, (Skip("missing shard", shard),))
    except OSError as error:
        return ShardIndex(shard, {}, (Skip("unreadable shard", shard, detail=str(error)),))


def scan_file(file: BinaryIO, shard: str) -> ShardIndex:
    """Read the headers of a plain tar file, which is called `shard`.

    Samples that are whole are kept whatever else is wrong. Problems are of the kinds "unreadable shard", "empty shard",
    "truncated shard" (with the key of the sample that was cut, if one was) and "duplicate key" (a key that comes again
    with an extension that it already has; the first one wins).
    """
    try:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return ShardIndex(shard, {}, (Skip("empty shard", shard),))
        with tarfile.open(fileobj=file, mode="r:") as tar:
            return _scan_members(tar, shard, size)
    except (OSError, tarfile.TarError) as error:
        return ShardIndex(shard, {}, (Skip("unreadable shard", shard, detail=str(error)),))


def _scan_members(tar: tarfile.TarFile, shard: str, file_size: int) -> ShardIndex:
    samples: dict[str, dict[str, Extent]] = {}
    problems: list[Skip] = []
    run_key, run_extensions, run_is_duplicate = "", set[str](), False
    cut_key = ""
    damage = ""
    members = iter(tar)
    while True:
        try:
            member = next(members)
        except StopIteration:
            damage = damage or _damage_at_end(tar)
            break
        except tarfile.TarError as error:
            damage = damage or str(error)
            break
        parts = split_member_name(member.name)
        if parts is None or not member.isfile():
            continue
        key, extension = parts
        if member.offset_data + member.size > file_size:
            cut_key, damage = key, "unexpected end of data"
            continue
        if key != run_key or extension in run_extensions:
            run_key, run_extensions, run_is_duplicate = key, set(), False
        run_extensions.add(extension)
        extents = samples.setdefault(key, {})
        if extension not in extents:
            extents[extension] = Extent(member.offset_data, member.size)
        elif not run_is_duplicate:
            run_is_duplicate = True
            problems.append(Skip("duplicate key", shard, key))
    if damage:
        samples.pop(cut_key, None)
        problems.append(Skip("truncated shard", shard, cut_key, damage))
    elif not samples:
        problems.append(Skip("empty shard", shard))
    return ShardIndex(shard, samples, tuple(problems))


def _damage_at_end(tar: tarfile.TarFile) -> str:
    """What is wrong where the scan ended; a whole archive has a block of zeros there. Empty if nothing is."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(TAR_BLOCK)
    if len(block) < TAR_BLOCK:
        return "no end-of-archive block"
    return "damaged header" if any(block) else ""


# --- the cache -----------------------------------------------------------------------------------------------


def index_shards(path: Path, index_dir: str | None = None, shards: Sequence[str] | None = None) -> Iterator[ShardIndex]:
    """The indices of all shards at `path`, in order of name, one at a time.

    Every rank must call it: rank r scans every world_size-th shard that has no valid index, all wait, then all
    read all.

    Args:
        shards: their names relative to the folder `path`; None: what `list_shards` finds.
    """
    from common import distributed  # imports torch, which scanning one shard does without

    root, shards = shard_root(path), list_shards(path) if shards is None else shards
    folders = _index_folders(root, index_dir)
    rank, world_size = distributed.rank(), distributed.world_size()
    scanned: dict[str, ShardIndex] = {}
    missing = [shard for shard in shards[rank::world_size] if _load_index(folders, root, shard) is None]
    quiet = rank != 0 or len(missing) < PROGRESS_FROM_SHARDS
    for shard in tqdm(missing, desc="Indexing shards", unit="shard", disable=quiet):
        index = scan_shard(root, shard)
        if not _store_index(folders, root, index):
            scanned[shard] = index
    if scanned:
        logger.warning("The index of %d shards could not be cached in any of %s.", len(scanned), folders)
    distributed.barrier()
    for shard in shards:
        yield scanned.get(shard) or _load_index(folders, root, shard) or scan_shard(root, shard)


def _index_folders(root: Path, index_dir: str | None) -> list[Path]:
    """Where an index may be, the preferred place first."""
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    return [
        Path(index_dir) if index_dir else root / ".shard_index",
        user_cache() / "shard_index" / name,
        Path(tempfile.gettempdir()) / f"vfm-vae-{os.getuid()}" / "shard_index" / name,
    ]


def user_cache() -> Path:
    """The folder for what this project may keep in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "vfm-vae"


def index_values(index: ShardIndex) -> dict[str, Any]:
    """What an index says about a shard, as JSON values."""
    return {"samples": index.samples, "problems": [asdict(problem) for problem in index.problems]}


def index_from_values(shard: str, content: Mapping[str, Any]) -> ShardIndex:
    """The index that `index_values` wrote. Raises: KeyError, TypeError or AttributeError for anything else."""
    samples = {
        key: {extension: Extent(*extent) for extension, extent in extents.items()}
        for key, extents in content["samples"].items()
    }
    return ShardIndex(shard, samples, tuple(Skip(**problem) for problem in content["problems"]))


def _fingerprint(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"version": INDEX_VERSION, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _store_index(folders: list[Path], root: Path, index: ShardIndex) -> bool:
    """Write an index to the first folder that takes it; False if none does, or the shard is gone."""
    try:
        fingerprint = _fingerprint(root / index.shard)
    except OSError:
        return False
    text = json.dumps(fingerprint | index_values(index), ensure_ascii=False)
    for folder in folders:
        try:
            write_text_atomically(folder / f"{index.shard}.json", text)
        except OSError:
            continue
        return True
    return False


def _load_index(folders: list[Path], root: Path, shard: str) -> ShardIndex | None:
    """The newest valid index of a shard; None if there is none (damaged, of another version, of another shard)."""
    for folder in folders:
        try:
            content = json.loads((folder / f"{shard}.json").read_text(encoding="utf-8"))
            if not _fingerprint(root / shard).items() <= content.items():
                continue
            return index_from_values(shard, content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None
