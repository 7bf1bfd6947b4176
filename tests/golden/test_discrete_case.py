"""A golden case in discrete mode, made here: what it stores about codes comes from plain loops in double precision."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from networks.checkpoint.names import to_own_name, to_reference_name
from networks.vfm_vae import VFMVAETokenizer
from tests.golden.cases import FIXED_BUFFERS, HERE, Case, collect, filled_state, load_filled
from tests.golden.check_encoders import build_encoder
from tests.golden.check_networks import check_tiny, tokenizer_config

VARIANTS = {
    "two codebooks with entropy": {"vocab_size": 32, "num_codebooks": 2, "use_entropy_loss": True, "vocab_beta": 0.5},
    "four codebooks without, by convolution": {"vocab_size": 64, "num_codebooks": 4, "how_to_compress": "conv"},
}


def plain_quantisation(head: Tensor, codebooks: list[Tensor], beta: float, temperature: float, entropy: bool) -> dict:
    """Position by position and code by code, as the formulas say."""
    batch, channels, height, width = head.shape
    count, (size, part) = len(codebooks), codebooks[0].shape
    z = torch.zeros(batch, channels, height, width, dtype=torch.float64)
    indices = torch.zeros(batch, count, height * width, dtype=torch.int64)
    vq = entropies = usage = 0.0
    for k, table in enumerate(codebooks):
        table = [row / math.sqrt(sum(v * v for v in row)) for row in table.double()]
        gaps, of_each, mean_p, uses = [], [], torch.zeros(size, dtype=torch.float64), [0] * size
        for b in range(batch):
            for position in range(height * width):
                place = (b, slice(k * part, (k + 1) * part), position // width, position % width)
                f = head[place].double()
                f = f / math.sqrt(sum(v * v for v in f))
                index = max(range(size), key=lambda v: float(f @ table[v]))
                z[place], indices[b, k, position] = table[index], index
                uses[index] += 1
                gaps += [(e - x) ** 2 for e, x in zip(table[index].tolist(), f.tolist(), strict=True)]
                distances = torch.stack([(f - e).square().sum() for e in table])
                weights = torch.exp((distances.min() - distances) / temperature)
                p = weights / weights.sum()
                of_each.append(-sum(x * math.log(x) for x in p.tolist() if x > 0))
                mean_p += p
        tokens = batch * height * width
        mean_p /= tokens
        vq += (1 + beta) * sum(gaps) / len(gaps) / count
        of_mean = -sum(x * math.log(x + 1e-7) for x in mean_p.tolist())
        entropies += (sum(of_each) / tokens - of_mean) / count
        usage += 100 * sum(n / tokens > 0.01 / size for n in uses) / size / count
    return {
        "z_quantized": z.float(),
        "indices": indices,
        "vq_loss": torch.tensor(vq),
        "entropy_loss": torch.tensor(entropies if entropy else 0.0),
        "codebook_usages": torch.tensor(usage),
    }


@torch.no_grad()
def write_case(folder: Path, changes: dict) -> Case:
    """The SigLIP2 case with codes instead of a posterior; images and features as the tokenizer makes them."""
    facts = json.loads((HERE / "networks_tiny_siglip2.json").read_text())
    kwargs = facts["generator_kwargs"] | {"compression_mode": "discrete", "vocab_width": 8} | changes
    config = tokenizer_config(kwargs, facts["vfm"])
    encoder = build_encoder(facts["vfm"], config.encoder.patch_from_layers, config.encoder.scale_factor)
    model = VFMVAETokenizer(config, encoder).eval()
    state_dict = [
        [to_reference_name(name, family="siglip2"), list(value.shape), "float32", not name.endswith(FIXED_BUFFERS)]
        for name, value in model.state_dict().items()
    ]
    weights = filled_state(state_dict)
    load_filled(model, {to_own_name(name, family="siglip2"): value for name, value in weights.items()})
    images = load_file(HERE / "networks_tiny_siglip2.safetensors")["img"]
    head = model.compression(model.encoder(images))
    codebooks = [
        weights[f"ldm_adapter.quantizer.codebooks.{k}.codebook.weight"] for k in range(kwargs["num_codebooks"])
    ]
    beta, temperature = kwargs.get("vocab_beta", 0.25), kwargs.get("entropy_temp", 0.01)
    tensors = plain_quantisation(head, codebooks, beta, temperature, kwargs.get("use_entropy_loss", False))
    decoded = model.decode(tensors["z_quantized"])
    tensors |= {"img": images, "z_before_quantize": head, "kl_loss": torch.zeros(())}
    tensors |= {"decode_img": decoded.reconstruction, "forward_img": decoded.reconstruction.clone()}
    tensors |= {f"decode_multiscale_{i}": image for i, image in enumerate(reversed(decoded.pyramid.values()))}
    path = folder / "networks_tiny_discrete.json"
    case = {"generator_kwargs": kwargs, "vfm": facts["vfm"], "state_dict": state_dict, "num_ws": facts["num_ws"]}
    path.write_text(json.dumps(case))
    save_file({name: value.contiguous() for name, value in tensors.items()}, path.with_suffix(".safetensors"))
    (found,) = collect(folder)
    return found


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_discrete_case_is_compared_whole(changes, tmp_path) -> None:
    case = write_case(tmp_path, changes)
    check_tiny(case)
    assert case.compared == len(case.tensors) - 1  # all but the input


def test_a_discrete_case_that_is_off_in_one_number_or_holds_an_unknown_one_fails(tmp_path) -> None:
    case = write_case(tmp_path, VARIANTS["two codebooks with entropy"])
    exact = dict(case.tensors)
    for name in ("indices", "codebook_usages"):
        spoilt = exact[name].clone()
        spoilt.view(-1)[0] += 1 if name == "indices" else 1e-2
        case.tensors = {**exact, name: spoilt}
        with pytest.raises(AssertionError, match=f"^{name}: differs"):
            check_tiny(case)
    case.tensors = {**exact, "mystery": torch.zeros(1)}
    with pytest.raises(AssertionError, match="the stored tensor 'mystery' has no counterpart"):
        check_tiny(case)
