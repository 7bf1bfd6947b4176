"""A whole run in small: a random encoder on disk, shards of made-up pictures, and a configuration for both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from data.write_shards import NewSample, encode_image, write_shards

if TYPE_CHECKING:
    from losses.interfaces import LossInputs
    from networks.quantizer import Quantized

SAMPLES = 20

# What makes the tiny configuration discrete, by dotted key.
DISCRETE: dict[str, Any] = {
    "latent.compression_mode": "discrete",
    "latent.vocab_width": 8,
    "latent.vocab_size": 32,
    "latent.num_codebooks": 2,
    "losses.kl": None,
    "losses.vq": {"weight": 1.0},
    "losses.entropy": {"weight": 0.1, "entropy_temp": 0.1},
}

# What makes the tiny configuration smaller still: 32 pixels, three blocks.
SMALL: dict[str, Any] = {
    "data.resolution": 32,
    "decoder.num_blocks": 3,
    "losses.multiscale_pixel.weights": {16: 0.1, 8: 0.1},
}

SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
SIGLIP_TEXT = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_size": 24,
}
CLASS_TEXTS = {"0": "a red fox", "1": "a blue whale", "2": "crane"}  # of the classes of `write_data`


def write_encoder(folder: Path) -> Path:
    """A SigLIP vision tower of 3 layers with random weights, as transformers saves it."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        SiglipVisionModel(SiglipVisionConfig(**SIGLIP)).save_pretrained(folder)
    return folder


def write_inception(path: Path) -> Path:
    """Random weights of the Inception network, in the form of the published file; features keep their scale."""
    import io

    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Empty(FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments):
            """Stay as built."""

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    state = Empty("random", ["2048"], feature_extractor_weights_path=nothing).state_dict()
    generator = torch.Generator().manual_seed(0)
    for value in state.values():
        if value.ndim > 1:
            fan_in = value[0].numel()
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5)
    torch.save(state, path)
    return path


def write_encoder_with_text(folder: Path) -> Path:
    """A whole SigLIP of vision and text tower with random weights, and a tokenizer that knows a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel

    words = sorted({word for text in CLASS_TEXTS.values() for word in text.split()})
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    text = {**SIGLIP_TEXT, "vocab_size": len(vocabulary), "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SiglipModel(SiglipConfig(text_config=text, vision_config=SIGLIP)).save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    """A CLIP as transformers saves it: random weights, 2 layers each, tokens are letters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")).save_pretrained(folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(tokens), "max_position_embeddings": 16, "eos_token_id": len(tokens) - 1}
    vision = {"image_size": 32, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=16)
        CLIPModel(config).save_pretrained(folder)
    return folder


def write_class_texts(path: Path) -> Path:
    """The JSON from class index to text."""
    path.write_text(json.dumps(CLASS_TEXTS), encoding="utf-8")
    return path


def write_data(folder: Path, samples: int = SAMPLES, shard_size: int = 7) -> Path:
    """Shards of smooth random pictures of 80 x 72 pixels, class = number modulo 3."""

    def pictures():
        for number in range(samples):
            rng = np.random.default_rng(number)
            coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            pixels = np.kron(coarse, np.ones((20, 18, 1), dtype=np.uint8))
            image, extension = encode_image(pixels, "png")
            yield NewSample(f"picture_{number:03d}", image, extension, number % 3)

    write_shards(pictures(), folder, shard_size=shard_size)
    return folder


def tiny_values(encoder: Path, data: Path, run_dir: Path) -> dict[str, Any]:
    """A configuration of the published classes in small, with all switches of this version on."""
    return {
        "system": "vfm_vae",
        "run": {"run_dir": str(run_dir), "random_seed": 3, "device": "cpu"},
        "data": {"path": str(data), "resolution": 64, "workers": 0},
        "encoder": {
            "vfm_name": str(encoder),
            "scale_factor": 2.0,
            "patch_from_layers": [0, 2, -1],
            "patch_in_dimensions": [32, 32, 32],
        },
        "latent": {
            "patch_out_dimensions": [8, 8, 16],
            "resolution_compression_factor": 8,
            "z_dimension": 4,
        },
        "decoder": {
            "z_dim_for_mapping_mlp_output": 16,
            "num_blocks": 4,
            "channel_base": 2048,
            "channel_max": 32,
            "num_res_blocks": 1,
            "concat_z_block_indices": [0, 1, 2],
            "concat_z_mapped_dims": [64, 16, 16],
            "attn_block_indices": [0, 1],
            "attn_depths": [1, 1],
            "attn_heads": 4,
            "legacy": True,
        },
        "equivariance": {"use_equivariance_regularization": True},
        "losses": {
            "l1_pixel": {"weight": 1.0},
            "l2_pixel": {"weight": 0.5},
            "multiscale_pixel": {"weights": {32: 0.1, 16: 0.1, 8: 0.1}},
            "kl": {"weight": 1e-6},
            "vf": {"weight": 1.0, "use_adaptive_vf_loss": True},
        },
        "optimizer": {"generator": {"lr": 1e-3}},
        "training": {
            "batch_size": 4,
            "total_kimg": 0.024,
            "kimg_per_tick": 0.008,
            "ema_kimg": 0.01,
        },
        "checkpoint": {"network_snapshot_ticks": 1},
        "logging": {"image_snapshot_ticks": None},
    }


def tiny_vfmtok_values(encoder: Path, data: Path, run_dir: Path) -> dict[str, Any]:
    """A configuration of VFMTok in small: 16 tokens of 48 codes for images of 32 pixels."""
    return {
        "system": "vfmtok",
        "run": {"run_dir": str(run_dir), "random_seed": 3, "device": "cpu"},
        "data": {"path": str(data), "resolution": 32, "workers": 0},
        "encoder": {
            "vfm_name": str(encoder),
            "scale_factor": 1.0,
            "patch_from_layers": [0, 2, -1],
            "patch_in_dimensions": [32, 32, 32],
        },
        "region_encoder": {"width": 32, "depth": 2, "heads": 4, "mlp_dim": 48, "num_points": 2, "num_tokens": 16},
        "codebook": {"vocab_size": 48, "vocab_width": 6},
        "decode_transformer": {"depth": 2, "heads": 4, "mlp_dim": 48, "num_register_tokens": 2},
        "pixel_decoder": {"channels": 32, "multipliers": [1, 1, 2]},
        "losses": {
            "l2_pixel": {"weight": 2.0},
            "vq": {"weight": 1.0},
            "entropy": {"weight": 0.1},
            "semantic": {"weight": 1.0},
        },
        "optimizer": {"generator": {"lr": 1e-3}},
        "training": {"batch_size": 4, "total_kimg": 0.024, "kimg_per_tick": 0.008, "ema_decay": 0.9},
        "checkpoint": {"network_snapshot_ticks": 1},
        "logging": {"image_snapshot_ticks": None},
    }


def write_config(values: dict[str, Any], path: Path) -> Path:
    """Write a configuration as YAML."""
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def loss_inputs_of(quantized: Quantized) -> LossInputs:
    """What losses see of codes alone."""
    from losses.interfaces import LossInputs
    from networks.interfaces import Features, Latent

    nothing = torch.empty(0)
    return LossInputs(nothing, nothing, latent=Latent(quantized.z, None, quantized, Features([], []), None))


def fill_weights(model: torch.nn.Module) -> None:
    """Give every weight of a tokenizer (but the encoder's) a value that hides no gradient, by the golden fill rule."""
    from networks.checkpoint import to_reference_name
    from tests.golden.cases import FIXED_BUFFERS, fill

    state = {
        name: fill(to_reference_name(name), list(value.shape))
        for name, value in model.trainable_parts().state_dict().items()
        if name.rsplit(".", 1)[-1] not in FIXED_BUFFERS
    }
    model.load_state_dict(state, strict=False)


def write_tokenizer(folder: Path, encoder: Path) -> Path:
    """A checkpoint of the tiny configuration, for images of 64 pixels, filled by the golden rule."""
    from common.config import Source
    from configs.schema import check
    from networks.checkpoint.folder import ModelFolder, write_model_folder
    from networks.vfm_vae import VFMVAETokenizer

    config = check(Source("tiny.yaml", tiny_values(encoder, folder, folder))).config.tokenizer()
    model = VFMVAETokenizer(config, encoder=None)
    fill_weights(model)
    facts = {"vfm_name": str(encoder), "sha256": None}
    write_model_folder(folder, ModelFolder(config, model.state_dict(), None, 0, facts))
    return folder


def write_vfmtok(folder: Path, encoder: Path) -> Path:
    """A checkpoint of the tiny VFMTok, as it is initialised."""
    from common.config import Source
    from configs.schema import check
    from networks.checkpoint.folder import ModelFolder, write_model_folder
    from networks.vfmtok.tokenizer import VFMTokTokenizer

    config = check(Source("tiny_vfmtok.yaml", tiny_vfmtok_values(encoder, folder, folder))).config.tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VFMTokTokenizer(config, encoder=None)
    facts = {"vfm_name": str(encoder), "sha256": None}
    write_model_folder(folder, ModelFolder(config, model.state_dict(), None, 0, facts))
    return folder
