"""LPIPS (Zhang et al. 2018), VGG16 trunk, v0.1 linear heads."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.precision import full_precision
from common.torch_file import read_torch_file
from losses.config import LPIPSConfig
from losses.interfaces import Loss, LossInputs

TRUNK_FILE = "vgg16-397923af.pth"
# torchvision's `features.N` -> the slice of the LPIPS trunk that holds layer N
_SLICE_ENDS = (4, 9, 16, 23, 30)


def find_trunk(vgg16_path: str | None) -> Path:
    """The VGG16 weights: the given file, else the one in the torch hub cache.

    Raises: UserError that names the file if there is none; it is never downloaded.
    """
    cache = Path(torch.hub.get_dir()) / "checkpoints" / TRUNK_FILE
    path = Path(vgg16_path).expanduser() if vgg16_path else cache
    if not path.is_file():
        raise UserError(
            f"LPIPS needs torchvision's VGG16 weights ({TRUNK_FILE}), and {path} does not exist. Put the file there, "
            "or say where it is (in a configuration losses.perceptual.vgg16_path, in tools --lpips-vgg16); it is never "
            "downloaded. Without it, use efficientnet_perceptual, whose weights come with the requirements."
        )
    return path


def load_lpips(vgg16_path: str | None = None) -> LPIPS:
    """Frozen LPIPS in eval mode: (a, b) in [-1, 1], [B, 3, H, W] -> one distance per pair, [B].

    Args:
        vgg16_path: torchvision's VGG16 weights; None: looked for in the torch hub cache.

    Raises: UserError if they are missing, damaged or not VGG16's.
    """
    path = find_trunk(vgg16_path)
    return LPIPS(read_torch_file(path), str(path))


class LPIPS(nn.Module):
    """The `lpips` package's network on a given trunk.

    Args:
        trunk: torchvision's VGG16 state dict (`features.N.weight`, ...; other entries are ignored).
        where: its origin, for messages.
    """

    def __init__(self, trunk: Mapping[str, Tensor], where: str = "VGG16"):
        super().__init__()
        import lpips

        self.where = where
        with warnings.catch_warnings():  # torchvision's `pretrained` argument, used inside the package
            warnings.simplefilter("ignore", UserWarning)
            self.network = lpips.LPIPS(net="vgg", version="0.1", pnet_rand=True, verbose=False)
        self.network.net.load_state_dict(trunk_state(trunk, where), strict=True)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> LPIPS:
        """Stay in eval mode: the network is a fixed measure."""
        return super().train(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        with full_precision(a.device):
            return self.network(a.float(), b.float()).flatten()


def trunk_state(trunk: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """torchvision's VGG16 entries under the names of the LPIPS trunk. Raises UserError if one is missing."""
    state = {}
    for name, value in trunk.items():
        if name.startswith("features."):
            layer = int(name.split(".")[1])
            piece = next(i for i, end in enumerate(_SLICE_ENDS, start=1) if layer < end)
            state[f"slice{piece}.{name.removeprefix('features.')}"] = value
    expected = {f"slice{i}.{n}.{p}" for i, n in _trunk_layers() for p in ("weight", "bias")}
    if set(state) != expected:
        odd = sorted(set(state) ^ expected)[0]
        raise UserError(f"{where}: not torchvision's VGG16 ({odd} does not match); expected the file {TRUNK_FILE}.")
    return state


def _trunk_layers() -> list[tuple[int, int]]:
    convolutions = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    return [(next(i for i, end in enumerate(_SLICE_ENDS, start=1) if n < end), n) for n in convolutions]


def random_trunk() -> dict[str, Tensor]:
    """VGG16's convolutions with random weights, under torchvision's names: they cost the same and measure nothing."""
    from torchvision.models import vgg16

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = vgg16(weights=None).features
    return {f"features.{name}": value for name, value in trunk.state_dict().items()}


class LPIPSLoss(Loss):
    """Mean LPIPS distance over the batch."""

    def __init__(self, config: LPIPSConfig):
        super().__init__()
        self.lpips = load_lpips(config.vgg16_path)

    def forward(self, inputs: LossInputs) -> Tensor:
        return self.lpips(inputs.target, inputs.reconstruction).mean()
