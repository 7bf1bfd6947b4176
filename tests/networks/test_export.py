"""The decoder as a graph of its own gives the images of the model."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from common.errors import ShapeError, UserError
from networks import VFMVAE
from networks.config import TokenizerConfig
from networks.encoders.loading import load_encoder
from networks.export import CONFIG_FILE, export_decoder, save_onnx
from networks.vfm_vae import VFMVAETokenizer
from tests.networks.test_variants import VARIANTS, variant_config
from tests.tiny import fill_weights, tiny_values
from tests.trainer.conftest import merged

TOOL = Path(__file__).parents[2] / "tools" / "export_decoder.py"
TOLERANCE = 1e-4

# Two blocks: tracing takes seconds per block, and the layers of one block are those of all.
SMALL = {
    "encoder.scale_factor": 1.0,
    "encoder.patch_from_layers": [2],
    "encoder.patch_in_dimensions": [32],
    "latent.how_to_compress": "conv",
    "latent.patch_out_dimensions": [16],
    "decoder.num_blocks": 2,
    "decoder.add_additional_convnext": False,
    "decoder.concat_z_block_indices": [0],
    "decoder.concat_z_mapped_dims": [16],
    "decoder.attn_block_indices": [0],
    "decoder.attn_depths": [1],
}


@pytest.fixture(scope="module")
def tokenizer(tiny_encoder) -> VFMVAETokenizer:
    values = merged(tiny_values(tiny_encoder, Path("unused"), Path("unused")), SMALL)
    config = TokenizerConfig(img_resolution=16, **{name: values[name] for name in ("encoder", "latent", "decoder")})
    model = VFMVAETokenizer(config, load_encoder(config.encoder)).eval()
    fill_weights(model)
    return model


def run_tool(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [TOOL.name, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name="__main__")
    return ended.value.code or 0


def latents(tokenizer: VFMVAETokenizer, count: int) -> torch.Tensor:
    return torch.randn(count, *tokenizer.latent_shape(16, 32), generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module")
def program_file(tokenizer, tmp_path_factory) -> Path:
    """What the command writes for images of 16 x 32 pixels."""
    folder = tmp_path_factory.mktemp("export")
    VFMVAE(tokenizer).save_pretrained(folder / "model")
    path = folder / "decoder.pt2"
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["--vae-pth", str(folder / "model"), "--output", str(path), "--height", "16", "--width", "32"]
        assert run_tool(patch, *arguments) == 0
    return path


def test_the_exported_program_gives_the_images_of_the_model_and_carries_its_configuration(
    tokenizer, program_file
) -> None:
    files = {CONFIG_FILE: ""}
    decode = torch.export.load(program_file, extra_files=files).module()
    assert json.loads(files[CONFIG_FILE])["latent"] == tokenizer.config.latent.model_dump(mode="json")
    for count in (1, 2, 5):
        z = latents(tokenizer, count)
        with torch.no_grad():
            images, expected = decode(z), tokenizer.decode(z).reconstruction
        assert images.shape == (count, 3, 16, 32)
        assert (images - expected).abs().max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["no ConvNeXt", "summed images"])
def test_other_kinds_of_decoders_export_as_well(variant: str, tiny_encoder) -> None:
    model = VFMVAETokenizer(variant_config(VARIANTS[variant], tiny_encoder), None).eval()
    fill_weights(model)
    decode = export_decoder(model, 64, 64).module()
    for count in (1, 3):
        z = torch.randn(count, 4, 8, 8)
        with torch.no_grad():
            assert (decode(z) - model.decode(z).reconstruction).abs().max() <= TOLERANCE


@pytest.mark.slow
def test_the_onnx_file_gives_the_images_of_the_model(tokenizer, program_file, tmp_path) -> None:
    import onnxruntime

    save_onnx(torch.export.load(program_file), tmp_path / "decoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "decoder.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        z = latents(tokenizer, count)
        (images,) = session.run(["images"], {"latent": z.numpy()})
        with torch.no_grad():
            expected = tokenizer.decode(z).reconstruction
        assert (torch.from_numpy(images) - expected).abs().max() <= TOLERANCE


def test_a_missing_onnx_package_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="pip install onnx onnxscript"):
        save_onnx(None, tmp_path / "decoder.onnx")


def test_a_size_that_does_not_fit_is_refused_before_the_export(tokenizer) -> None:
    with pytest.raises(ShapeError, match="images of 20 x 32 pixels"):
        export_decoder(tokenizer, 20, 32)


def test_a_conditional_decoder_is_refused(tiny_encoder) -> None:
    conditional = {**SMALL, "decoder.conditional": True, "decoder.label_type": "cls2id", "decoder.label_dim": 3}
    values = merged(tiny_values(tiny_encoder, Path("unused"), Path("unused")), conditional)
    config = TokenizerConfig(img_resolution=16, **{name: values[name] for name in ("encoder", "latent", "decoder")})
    with pytest.raises(UserError, match=r"decoder\.conditional: found true; only decoders that need nothing but a"):
        export_decoder(VFMVAETokenizer(config, None), 16, 16)


def test_a_file_name_that_tells_no_format_is_refused(monkeypatch, capsys) -> None:
    assert run_tool(monkeypatch, "--vae-pth", "model", "--output", "decoder.pth") == 2
    assert "found 'decoder.pth', expected a name that ends with .pt2 or .onnx" in capsys.readouterr().err
