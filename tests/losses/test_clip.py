"""The CLIP loss on a tiny CLIP with random weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from losses.clip import CLIPLoss, load_clip, random_crop, squared_angle
from losses.config import CLIPTermConfig
from losses.interfaces import LossInputs

SIDE = 32


@pytest.fixture(scope="module")
def loss(tiny_clip) -> CLIPLoss:
    return CLIPLoss(CLIPTermConfig(weight=1.0, clip_path=str(tiny_clip)))


def inputs(images: torch.Tensor, texts: list[str], seed: int = 0) -> LossInputs:
    return LossInputs(images, images, texts=texts, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_the_squared_angle_of_clips_own_embeddings(loss: CLIPLoss) -> None:
    texts = ["cat", "a dog that runs"]
    unit = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (loss.mean.flatten().tolist(), loss.std.flatten().tolist()))
    tokens = loss.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = loss.clip(pixel_values=(unit - mean) / std, **tokens)
    cosines = (output.image_embeds * output.text_embeds).sum(-1)  # clip normalises them
    expected = sum(math.acos(c) ** 2 for c in cosines.tolist()) / 2
    assert loss(inputs(unit * 2 - 1, texts)).item() == pytest.approx(expected, rel=1e-5)


def test_an_images_loss_does_not_depend_on_the_other_texts_of_the_batch(loss: CLIPLoss) -> None:
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    texts = ["cat", "a much longer text that is cut off at the end of the context"]
    together = loss(inputs(images, texts)).item()
    alone = [loss(inputs(images[i : i + 1], texts[i : i + 1])).item() for i in range(2)]
    assert together == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_the_gradient_reaches_the_image_and_no_weight(loss: CLIPLoss) -> None:
    images = (torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1).requires_grad_()
    loss.train()
    assert not loss.clip.training
    loss(inputs(images, ["cat"])).backward()
    assert images.grad.isfinite().all() and images.grad.abs().max() > 0
    assert not any(p.requires_grad for p in loss.parameters())
    assert not any(key.startswith(("mean", "std")) for key in loss.state_dict())


def test_large_images_are_cropped_to_one_window_that_the_generator_decides() -> None:
    images = torch.rand(3, 3, 100, 80)

    def crop(seed):
        return random_crop(images, 64, torch.Generator().manual_seed(seed))

    assert crop(0).shape == (3, 3, 64, 64)
    assert torch.equal(crop(0), crop(0))
    assert not torch.equal(crop(0), crop(1))
    windows = images.unfold(2, 64, 1).unfold(3, 64, 1)  # [3, 3, 37, 17, 64, 64]
    matches = (windows == crop(0)[:, :, None, None]).all(-1).all(-1).all(0).all(0)
    assert matches.sum() == 1
    small = torch.rand(1, 3, 64, 64)
    assert random_crop(small, 64, torch.Generator()) is small


@pytest.mark.parametrize("angle", [0.0, 1e-4, 0.5, math.pi / 2, 3.0])
def test_squared_angle_and_its_gradient_are_exact_at_any_angle(angle: float) -> None:
    a = torch.tensor([[2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    b = 3 * torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    value = squared_angle(a, b)
    assert value.item() == pytest.approx(angle**2, rel=1e-9, abs=1e-15)
    value.backward()
    assert a.grad[0].tolist() == pytest.approx([0, -angle], rel=1e-6, abs=1e-12)  # 2 angle / |a|, against the turn


@pytest.mark.parametrize("path", [None, "no/such/folder"])
def test_a_missing_clip_names_the_key_and_the_published_model(path) -> None:
    with pytest.raises(UserError) as error:
        load_clip(path)
    text = str(error.value)
    assert text.startswith(f"losses.clip.clip_path: found {path!r}, expected the folder of a CLIP")
    assert "openai/clip-vit-large-patch14" in text
    assert "never downloaded" in text


def test_a_clip_that_lacks_weights_is_refused(tiny_clip: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_clip, tmp_path / "clip")
    state = load_file(folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights, e\.g\. visual_projection\.weight"):
        load_clip(str(folder))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"losses\.clip\.clip_path: .* It could not be loaded: "):
        load_clip(str(tmp_path))
