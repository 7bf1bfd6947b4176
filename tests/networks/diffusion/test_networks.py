"""Both diffusion transformers: names and shapes, initial weights, conventions, features, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from common.errors import ConfigError, ShapeError, UserError
from common.random import torch_generator
from networks.diffusion.config import LIGHTNINGDIT_SIZES, SIT_SIZES, LightningDiTConfig, REGSiTConfig
from networks.diffusion.lightningdit import LightningDiT
from networks.diffusion.reg_sit import REGSiT
from networks.layers.labels import drop_labels
from tests.networks.diffusion.published import REFERENCE, expand, on_meta
from tests.networks.diffusion.tiny import TINY, TINY_REG, lightningdit, reg_sit, tiny_inputs


def count(network: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trainable)


def kinds(network: nn.Module) -> dict[str, tuple[str, list[int]]]:
    trained = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    names = {None: "buffer", True: "parameter", False: "frozen_parameter"}
    return {name: (names[trained.get(name)], list(value.shape)) for name, value in network.state_dict().items()}


@pytest.mark.parametrize(("name", "model_type"), [("lightningdit", "LightningDiT-XL/1"), ("reg_sit", "SiT-XL/1")])
def test_published_network_has_the_entries_of_the_reference_in_their_order(name: str, model_type: str) -> None:
    facts = REFERENCE[name]
    network = on_meta(model_type)
    assert list(kinds(network).items()) == list(expand(facts).items())
    assert len(network.state_dict()) == facts["entries_in_all"]
    assert (count(network), count(network, trainable=True)) == (facts["parameters"], facts["trainable"])
    assert all(value.dtype == torch.float32 for value in network.state_dict().values())


@pytest.mark.parametrize(
    ("model_type", "swiglu_width", "parameters"),
    [
        ("LightningDiT-B/1", 2048, 130_557_728),
        ("LightningDiT-L/2", 2730, 458_156_128),
        ("LightningDiT-XL/1", 3072, 675_260_768),
        ("LightningDiT-1p0B/1", 4096, 1_029_404_192),
        ("LightningDiT-1p6B/1", 4778, 1_631_770_704),
    ],
)
def test_sizes_of_lightningdit_have_the_published_numbers(model_type, swiglu_width, parameters) -> None:
    network = on_meta(model_type)
    assert network.blocks[0].mlp.w3.in_features == swiglu_width
    assert count(network) == parameters


def test_entries_of_unnormalised_heads_are_the_ones_that_lack() -> None:
    full, without = on_meta("LightningDiT-XL/1"), on_meta("LightningDiT-XL/1", use_qknorm=False)
    assert len(full.state_dict()) - len(without.state_dict()) == 56
    full, without = on_meta("SiT-XL/1"), on_meta("SiT-XL/1", qk_norm=False)
    assert len(full.state_dict()) - len(without.state_dict()) == 112


@pytest.mark.parametrize("model_type", [*LIGHTNINGDIT_SIZES, *SIT_SIZES])
def test_every_named_size_gives_a_velocity_for_each_latent(model_type: str) -> None:
    size = {**LIGHTNINGDIT_SIZES, **SIT_SIZES}[model_type]
    x, t = torch.empty(2, 32, 16, 16, device="meta"), torch.empty(2, device="meta")
    with torch.device("meta"):  # one block stands for all
        if model_type.startswith("Lightning"):
            network = LightningDiT(LightningDiTConfig(**{**vars(size), "depth": 1}))
            assert network.velocity(x, t, t.long()).shape == x.shape
        else:
            network = REGSiT(REGSiTConfig(**{**vars(size), "depth": 1}, encoder_depth=1))
            output = network(x, t, t.long(), torch.empty(2, 768))
            assert output.latent.shape == x.shape and output.class_token.shape == (2, 768)
            tokens = (16 // size.patch_size) ** 2 + 1
            assert [projected.shape for projected in output.projections] == [(2, tokens, 768)]


# --- initial weights -------------------------------------------------------------------------------------------------


def fresh_networks() -> list[nn.Module]:
    torch.manual_seed(0)
    return [LightningDiT(LightningDiTConfig(**TINY)), REGSiT(REGSiTConfig(**TINY_REG))]


def test_fresh_networks_give_exactly_zero_and_their_blocks_change_nothing() -> None:
    inputs = tiny_inputs()
    dit, reg = fresh_networks()
    assert not dit(inputs.x, inputs.t, inputs.y).any()
    output = reg(inputs.x, inputs.t, inputs.y, inputs.cls_token)
    assert not output.latent.any() and not output.class_token.any()
    assert all(projected.any() for projected in output.projections)
    for network in (dit, reg):
        tokens, c = torch.randn(2, network.pos_embed.shape[1], 32), torch.randn(2, 32)
        assert torch.equal(network.run_block(network.blocks[0], tokens, c, getattr(network, "feat_rope", None)), tokens)


def test_initial_weights_have_their_ranges() -> None:
    torch.manual_seed(0)
    changes = {"hidden_size": 128, "num_heads": 2, "in_channels": 32, "num_classes": 1000}
    for network in (
        LightningDiT(LightningDiTConfig(**{**TINY, **changes, "patch_size": 2})),
        REGSiT(REGSiTConfig(**{**TINY_REG, **changes, "z_dims": [48, 20]})),
    ):
        drawn = {"t_embedder.mlp.0", "t_embedder.mlp.2"}
        for name, module in network.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            assert not module.bias.any(), name
            if name.endswith("adaLN_modulation.1") or name.startswith("final_layer."):
                assert not module.weight.any(), name
            elif name in drawn:
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            else:
                bound = math.sqrt(6 / sum(module.weight.flatten(1).shape))
                assert 0.95 * bound < module.weight.abs().max() <= bound, name
                assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
        assert network.y_embedder.embedding_table.weight.std().item() == pytest.approx(0.02, rel=0.01)
        norms = [m for m in network.modules() if getattr(m, "weight", None) is not None and "Norm" in type(m).__name__]
        assert norms and all((norm.weight == 1).all() for norm in norms)


def test_positions_of_the_class_token_are_zero_and_of_patches_column_first() -> None:
    dit, reg = fresh_networks()
    assert not reg.pos_embed[0, 0].any()
    assert torch.equal(reg.pos_embed[0, 1:], dit.pos_embed[0])
    table = dit.pos_embed[0].unflatten(0, (4, 4))  # [row, column, D]
    assert torch.equal(table[1, 2, :16], table[3, 2, :16])  # the first half knows the column alone
    assert torch.equal(table[1, 2, 16:], table[1, 0, 16:])
    assert table[0, 1, 0].item() == pytest.approx(math.sin(1)) and table[0, 1, 8].item() == pytest.approx(math.cos(1))


# --- what the networks compute ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network",
    [
        lightningdit(),
        lightningdit(wo_shift=True, use_swiglu=False, use_rmsnorm=False, patch_size=2),
        reg_sit(),
        reg_sit(qk_norm=False, patch_size=2, encoder_depth=3),
    ],
    ids=["LightningDiT", "LightningDiT, other flags", "REG", "REG, other flags"],
)
def test_every_trainable_parameter_gets_a_gradient_also_with_activation_checkpointing(network) -> None:
    inputs = tiny_inputs()
    gradients = []
    for use_checkpoint in (False, True):
        network.config = network.config.model_copy(update={"use_checkpoint": use_checkpoint})
        network.zero_grad()
        if isinstance(network, LightningDiT):
            loss = network.velocity(inputs.x, inputs.t, inputs.y).square().mean()
        else:
            output = network(inputs.x, inputs.t, inputs.y, inputs.cls_token)
            loss = sum(v.square().mean() for v in (output.latent, output.class_token, *output.projections))
        loss.backward()
        found = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
        assert [name for name, grad in found.items() if grad is None or not grad.isfinite().all()] == []
        assert [name for name, grad in found.items() if not grad.any()] == []
        gradients.append(found)
    assert all(torch.equal(grad, gradients[1][name]) for name, grad in gradients[0].items())
    assert network.pos_embed.grad is None


def test_velocity_of_lightningdit_turns_time_and_sign_of_its_weights() -> None:
    inputs, network = tiny_inputs(), lightningdit()
    velocity = network.velocity(inputs.x, inputs.t, inputs.y)
    assert velocity.any() and torch.equal(velocity, -network(inputs.x, 1 - inputs.t, inputs.y))


def test_rotary_attention_depends_on_distances_alone() -> None:
    rope = lightningdit().feat_rope
    q, k = torch.randn(16), torch.randn(16)
    turned_q, turned_k = rope(q.expand(1, 1, 16, 16))[0, 0], rope(k.expand(1, 1, 16, 16))[0, 0]
    scores = (turned_q @ turned_k.T).unflatten(0, (4, 4)).unflatten(2, (4, 4))  # [row, column, row, column]
    assert torch.allclose(scores[0, 1, 2, 2], scores[1, 2, 3, 3], atol=1e-5)
    assert not torch.allclose(scores[0, 1, 2, 2], scores[0, 1, 2, 3], atol=1e-3)


def test_features_name_the_parts_in_order_and_compute_no_further_than_asked() -> None:
    inputs, network = tiny_inputs(), lightningdit()
    found = dict(network.features(inputs.x, inputs.t, inputs.y))
    assert list(found) == ["embedder", "block_0", "block_1", "block_2", "final_layer"]
    assert found["block_1"].shape == (3, 16, 32)
    image = found["final_layer"].transpose(1, 2).unflatten(2, (4, 4))
    assert torch.equal(-image, network.velocity(inputs.x, inputs.t, inputs.y))
    calls = []
    network.blocks[1].register_forward_hook(lambda *_: calls.append(1))
    next(iter(network.features(inputs.x, inputs.t, inputs.y)))
    assert not calls


def test_features_of_reg_leave_the_class_token_to_the_projectors() -> None:
    inputs, network = tiny_inputs(), reg_sit()
    found = dict(network.features(inputs.x, inputs.t, inputs.y, inputs.cls_token))
    assert list(found) == ["embedder", "block_0", "block_1", "projector_0", "projector_1", "block_2", "final_layer"]
    shapes = {name: list(tokens.shape[1:]) for name, tokens in found.items()}
    assert shapes["block_1"] == [16, 32] and shapes["final_layer"] == [16, 5]
    assert (shapes["projector_0"], shapes["projector_1"]) == ([17, 12], [17, 20])
    output = network(inputs.x, inputs.t, inputs.y, inputs.cls_token)
    assert torch.equal(found["projector_1"], output.projections[1])


def test_under_autocast_tokens_stay_in_full_precision() -> None:
    inputs, network = tiny_inputs(), lightningdit()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        found = dict(network.features(inputs.x, inputs.t, inputs.y))
        tokens = {name: value.dtype for name, value in found.items() if name != "final_layer"}
    assert set(tokens.values()) == {torch.float32}
    exact = network.velocity(inputs.x, inputs.t, inputs.y)
    output = -found["final_layer"].transpose(1, 2).unflatten(2, (4, 4)).float()
    assert (output - exact).abs().max() < 0.05 * exact.abs().max()


# --- labels ----------------------------------------------------------------------------------------------------------


def test_labels_become_the_null_class_as_often_as_configured_and_the_same_ones_again() -> None:
    labels = torch.arange(100_000) % 7

    def dropped_by(key: int) -> torch.Tensor:
        return drop_labels(labels, 7, 0.1, torch_generator(0, "label dropout", key))

    dropped = dropped_by(3)
    assert (dropped == 7).float().mean().item() == pytest.approx(0.1, abs=0.004)  # 4 standard deviations
    assert torch.equal(dropped[dropped != 7], labels[dropped != 7])
    assert torch.equal(dropped, dropped_by(3))
    assert not torch.equal(dropped, dropped_by(4))


def test_without_label_dropout_there_is_no_null_class() -> None:
    network = lightningdit(class_dropout_prob=0.0)
    assert network.y_embedder.embedding_table.num_embeddings == 10
    with pytest.raises(UserError, match=r"no null class.*class_dropout_prob is 0"):
        _ = network.null_label
    with pytest.raises(UserError, match=r"found the label 10, expected 0 to 9\.$"):
        network(torch.zeros(1, 5, 4, 4), torch.zeros(1), torch.tensor([10]))


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, 4, 4, 4)}, r"found latents \[3, 4, 4, 4\], expected \[B, 5, 4, 4\]"),
        ({"x": torch.zeros(3, 5, 4, 5)}, r"found latents \[3, 5, 4, 5\], expected"),
        ({"x": torch.zeros(5, 4, 4)}, r"found latents \[5, 4, 4\], expected"),
        ({"t": torch.zeros(3, 1, 1, 1)}, r"found times \[3, 1, 1, 1\] for 3 latents, expected \[3\]"),
        ({"y": torch.zeros(2).long()}, r"found labels \[2\] for 3 latents"),
        ({"cls_token": torch.zeros(3, 20)}, r"found class tokens \[3, 20\], expected \[3, 12\]"),
    ],
)
def test_inputs_of_another_shape_are_refused(changes, message) -> None:
    inputs = {**vars(tiny_inputs()), **changes}
    with pytest.raises(ShapeError, match=message):
        reg_sit()(**inputs)


@pytest.mark.parametrize("label", [-1, 11])
def test_labels_that_are_no_class_are_refused(label: int) -> None:
    inputs = tiny_inputs()
    with pytest.raises(UserError, match=rf"found the label {label}, expected 0 to 9 \(classes\) or 10 \(the null"):
        lightningdit()(inputs.x, inputs.t, torch.tensor([0, label, 1]))


def test_contradictions_of_the_configuration_are_refused() -> None:
    with pytest.raises(ConfigError, match="encoder_depth: 4 is more than the 3 blocks"):
        reg_sit(encoder_depth=4)
