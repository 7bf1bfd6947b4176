import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common import distributed
from common.errors import ShapeError
from common.value_range import uint8_to_unit
from evaluation.extractors.base import Extractor, ImageFeatures
from networks.latent import DiagonalGaussian


class FakeTokenizer(nn.Module):
    """A tokenizer in all but size: 4x4 block means and a noisy copy of them, enlarged by repetition."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(img_resolution=16, conditional=False, model_dump=lambda mode: {"side": 16})
        self.gain = nn.Parameter(torch.tensor(1.0))

    png_rounding = "truncate"

    def latent_shape(self, height, width):
        return 3, height // 4, width // 4

    def require_image_size(self, height, width):
        if height % 4 or width % 4:
            raise ShapeError("expected multiples of 4")

    def encode(self, images, noise):
        mean = nn.functional.avg_pool2d(images, 4) * 2 - 1
        logvar = torch.full_like(mean, -3.0)
        posterior = DiagonalGaussian(torch.cat([mean, logvar], dim=1))
        return SimpleNamespace(z=posterior.sample(noise=noise), posterior=posterior)

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


class TinyExtractor(Extractor):
    """Features in the place of EfficientNet-Lite0's: a fixed random layer on 3 x 3 means, 12 features and 5 classes."""

    name = "efficientnet_lite0"

    def __init__(self):
        super().__init__("made up")
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(27, 12, generator=generator))
        self.register_buffer("classifier", torch.randn(12, 5, generator=generator))

    @classmethod
    def load(cls, weights_path):
        return cls()

    def run(self, images):
        means = nn.functional.adaptive_avg_pool2d(uint8_to_unit(images), 3).flatten(1)
        pool = torch.relu(means @ self.weight)
        return ImageFeatures(pool, None, pool @ self.classifier)


@pytest.fixture
def tiny_extractor(monkeypatch):
    """Stands for EfficientNet-Lite0 wherever an extractor is chosen."""
    extractor = TinyExtractor()
    monkeypatch.setattr("evaluation.reconstruction_scores.load_extractor", lambda name, path=None: extractor)
    return extractor


@pytest.fixture
def on_ranks(monkeypatch):
    """Runs a function as so many ranks, one thread each; returns what they returned, in order of rank."""

    def run(count, work):
        here = threading.local()
        everyone = threading.Barrier(count, timeout=60)
        values = [None] * count

        def gather(value):
            values[here.rank] = value
            everyone.wait()
            gathered = list(values)
            everyone.wait()
            return gathered

        def on_rank_0(job):
            return gather(job() if here.rank == 0 else None)[0]

        def start(rank):
            here.rank = rank
            return work()

        with monkeypatch.context() as patch:
            patch.setattr(distributed, "rank", lambda: here.rank)
            patch.setattr(distributed, "world_size", lambda: count)
            patch.setattr(distributed, "all_gather_objects", gather)
            patch.setattr(distributed, "all_gather", lambda tensor: torch.stack(gather(tensor)))
            patch.setattr(distributed, "on_rank_0", on_rank_0)
            patch.setattr(distributed, "barrier", everyone.wait)
            with ThreadPoolExecutor(count) as ranks:
                return list(ranks.map(start, range(count)))

    return run
