from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common.errors import ShapeError
from networks.latent import DiagonalGaussian


class FakeTokenizer(nn.Module):
    """A tokenizer in all but size: 4x4 block means and a noisy copy of them, enlarged by repetition."""

    def __init__(self):
        super().__init__()
        decoder = SimpleNamespace(conditional=False)
        self.config = SimpleNamespace(img_resolution=16, decoder=decoder, model_dump=lambda mode: {"side": 16})
        self.gain = nn.Parameter(torch.tensor(1.0))

    def latent_shape(self, height, width):
        return 3, height // 4, width // 4

    def require_image_size(self, height, width):
        if height % 4 or width % 4:
            raise ShapeError("expected multiples of 4")

    def encode(self, images, noise):
        mean = nn.functional.avg_pool2d(images, 4) * 2 - 1
        logvar = torch.full_like(mean, -3.0)
        return SimpleNamespace(z=DiagonalGaussian(torch.cat([mean, logvar], dim=1)).sample(noise=noise))

    def decode(self, z, c=None):
        return SimpleNamespace(reconstruction=nn.functional.interpolate(z, scale_factor=4) * self.gain)


@pytest.fixture
def tokenizer():
    return FakeTokenizer().eval()


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory):
    """A file of random weights in the form of the published Inception ones."""
    from tests.tiny import write_inception

    return write_inception(tmp_path_factory.mktemp("inception") / "random-inception.pth")
