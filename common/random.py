"""Random draws that depend on what they are for, and on nothing that came before.

Every draw of the project comes from a generator keyed by (seed, purpose, indices): which step, which global
micro-batch, which sample. So a resumed run needs no hidden generator state, and the same draws are made
however the work is split over ranks, workers or accumulation steps.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def keyed_seed(seed: int, purpose: str, *indices: int | str) -> int:
    """A 63-bit seed from a run's seed, the name of the draw's purpose and its indices.

    Equal arguments give equal seeds on every machine and in every version of Python.
    """
    text = "\x1f".join([str(int(seed)), purpose, *(str(index) for index in indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def python_generator(seed: int, purpose: str, *indices: int | str) -> random.Random:
    """A `random.Random` keyed as `keyed_seed` describes."""
    return random.Random(keyed_seed(seed, purpose, *indices))


def numpy_generator(seed: int, purpose: str, *indices: int | str) -> np.random.Generator:
    """A NumPy generator (PCG64) keyed as `keyed_seed` describes."""
    import numpy as np

    return np.random.Generator(np.random.PCG64(keyed_seed(seed, purpose, *indices)))


def torch_generator(
    seed: int, purpose: str, *indices: int | str, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A `torch.Generator` on `device`, keyed as `keyed_seed` describes."""
    import torch

    return torch.Generator(device=device).manual_seed(keyed_seed(seed, purpose, *indices))


@contextlib.contextmanager
def keyed_draws(seed: int, purpose: str, *indices: int | str, device: str | torch.device = "cpu") -> Iterator[None]:
    """Key what layers draw from torch's own generators (dropout) as `keyed_seed` describes, while the block runs.

    The generators of the CPU and of `device` are as they were afterwards.
    """
    import torch

    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(keyed_seed(seed, purpose, *indices))
        yield
