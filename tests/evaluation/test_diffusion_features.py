"""Features of diffusion models for an alignment analysis: what they are means of, and what is refused."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from common.checkpoint_folder import write_checkpoint
from common.errors import CheckpointError, ConfigError, DataError, UserError
from common.random import torch_generator
from data.latents import write_statistics
from data.name_tensors import pack_names
from evaluation.alignment.config import DiffusionSection, load_alignment_config
from evaluation.alignment.extraction import extract_parts
from evaluation.alignment.features import read_features
from evaluation.alignment.models.diffusion import DiffusionFeatures, load, open_latents
from evaluation.alignment.stored_latents import StoredLatents
from networks.diffusion.building import load_network
from networks.diffusion.reg_sit import REGSiT
from tests.evaluation.diffusion.tiny_samplers import seeded
from tests.networks.diffusion.tiny import TINY_REG, lightningdit, reg_sit

CPU = torch.device("cpu")
TOOLS = Path(__file__).parents[2] / "tools" / "evaluate_alignment"
CHANNELS, SIDE, CLASSES, WIDTH = 5, 4, 10, 12  # of the tiny networks
MEAN, STD = torch.tensor([1.0, -2.0, 0.5, 0.0, 4.0]), torch.tensor([2.0, 0.5, 1.0, 3.0, 0.1])
NAMES = [f"n01440764_{number}" for number in (3, 0, 4, 1, 2, 5, 6)]


@pytest.fixture(scope="module")
def networks():
    """Of each family one with random weights everywhere, also where training starts from 0."""
    found = {"lightningdit": seeded(lightningdit), "reg": seeded(reg_sit)}
    for network in found.values():
        network.requires_grad_(False)
    return found


@pytest.fixture
def latents(tmp_path):
    """Two files of 4 and 3 images, in no order, with class tokens and statistics."""
    return write_latents(tmp_path / "latents")


def write_latents(folder: Path, **changes: torch.Tensor) -> Path:
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number, names in enumerate((NAMES[:4], NAMES[4:])):
        z = torch.randn(len(names), CHANNELS, SIDE, SIDE, generator=generator)
        tensors = {
            "latents": z * STD.view(-1, 1, 1) + MEAN.view(-1, 1, 1),
            "labels": torch.arange(len(names)),
            "names": pack_names(names),
            "dinov2_cls_tokens": torch.randn(len(names), WIDTH, generator=generator),
        }
        save_file({**tensors, **changes}, folder / f"latents_rank00_batch{number:03d}.safetensors")
    write_statistics(folder, MEAN, STD)
    return folder


def write_folder(folder: Path, network, multiplier: float = 1.0) -> Path:
    """A checkpoint of a run, as far as it matters here."""
    kind = "reg" if isinstance(network, REGSiT) else "lightningdit"
    statistics = {"mean": MEAN.tolist(), "std": STD.tolist(), "multiplier": multiplier}
    config = {"model_type": kind, "network": network.config.model_dump(mode="json"), "latents": statistics}

    def fill(target: Path) -> None:
        save_file(network.state_dict(), target / "model.safetensors")
        (target / "config.json").write_text(json.dumps(config))

    write_checkpoint(folder, fill, {"nimg": 0})
    return folder


def run_tool(monkeypatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(TOOLS / name))["main"]()


# --- what features are ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["lightningdit", "reg"])
def test_features_are_means_of_the_networks_own_tokens_at_that_noise(family, networks, latents):
    network, t = networks[family], 0.3
    stored = StoredLatents(latents, with_class_tokens=family == "reg")
    found = DiffusionFeatures(network, seed=7).features(stored.batch([1, 2], CPU), t)

    def noisy(clean: torch.Tensor, purpose: str, name: str) -> torch.Tensor:
        return (1 - t) * clean + t * torch.randn(clean.shape, generator=torch_generator(7, purpose, name))[None]

    file = load_file(latents / "latents_rank00_batch000.safetensors")
    row = NAMES.index("n01440764_1")  # the second name in order
    z = (file["latents"][row] - MEAN.view(-1, 1, 1)) / STD.view(-1, 1, 1)
    inputs = [noisy(z, "alignment latent", NAMES[row]), torch.tensor([t]), torch.tensor([CLASSES])]
    if family == "reg":
        inputs.append(noisy(file["dinov2_cls_tokens"][row], "alignment class token", NAMES[row]))
    tokens = dict(network.features(*inputs))
    for part, values in tokens.items():
        assert torch.allclose(found[part][0], values[0].mean(0), atol=1e-5), part
        assert len(values[0]) == SIDE**2 + part.startswith("projector")  # only these count the class token in
    assert list(found) == list(tokens) == network.feature_names


def test_the_class_token_of_reg_takes_part_but_not_in_the_mean(networks, latents):
    clean = StoredLatents(latents, with_class_tokens=True).batch([0], CPU)
    model = DiffusionFeatures(networks["reg"], ["embedder", "block_0"])
    before = model.features(clean, 0)
    clean.class_tokens.add_(1)
    after = model.features(clean, 0)
    assert torch.equal(before["embedder"], after["embedder"])
    assert not torch.allclose(before["block_0"], after["block_0"], atol=1e-4)


@pytest.mark.parametrize("family", ["lightningdit", "reg"])
def test_features_depend_on_neither_batches_nor_ranks(family, networks, latents, on_ranks):
    stored = StoredLatents(latents, with_class_tokens=family == "reg")
    model = DiffusionFeatures(networks[family])
    whole = extract_parts(model, stored, 0.5, 7, CPU)
    ranks = on_ranks(3, lambda: extract_parts(model, stored, 0.5, 2, CPU))
    for part in model.parts:
        assert whole[part].names == tuple(sorted(NAMES)) == ranks[1][part].names
        assert torch.allclose(whole[part].features, ranks[1][part].features, atol=1e-5)


def test_labels_are_told_only_if_that_is_wanted(networks, latents):
    clean = StoredLatents(latents).batch([0, 1], CPU)

    def block(use_label: bool) -> torch.Tensor:
        return DiffusionFeatures(networks["lightningdit"], ["block_0"], use_label=use_label).features(clean, 0.5)[
            "block_0"
        ]

    null = block(use_label=False)
    assert not torch.allclose(null, block(use_label=True), atol=1e-4)
    clean.labels.fill_(CLASSES)  # the null class
    assert torch.equal(null, block(use_label=True))


def test_nothing_is_computed_beyond_the_last_wanted_part(networks, latents):
    network, ran = networks["lightningdit"], []
    hooks = [block.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(network.blocks)]
    found = DiffusionFeatures(network, ["block_1", "embedder"]).features(StoredLatents(latents).batch([0], CPU), 0.5)
    for hook in hooks:
        hook.remove()
    assert list(found) == ["embedder", "block_1"] and ran == [0, 1]


# --- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["lightningdit", "reg"])
def test_folders_and_reference_files_give_the_same_network(family, networks, tmp_path):
    network = networks[family]
    write_folder(tmp_path / "run" / "checkpoints" / "checkpoint-000000000008", network)
    torch.save({"ema": network.state_dict(), "model": {}}, tmp_path / "0000001.pt")
    of_file = load_network(tmp_path / "0000001.pt", network.config)
    for found in (of_file, load_network(tmp_path / "run")):
        assert found.config == network.config and not found.training
        assert all(torch.equal(value, network.state_dict()[name]) for name, value in found.state_dict().items())


def test_what_does_not_belong_to_a_checkpoint_is_refused(networks, latents, tmp_path):
    network = networks["lightningdit"]
    folder, file = write_folder(tmp_path / "folder", network, multiplier=0.5), tmp_path / "0000001.pt"
    torch.save({"ema": network.state_dict()}, file)

    def section(**values) -> DiffusionSection:
        return DiffusionSection(**{"checkpoint": str(file), "latents": str(latents), **values})

    with pytest.raises(CheckpointError, match=r"nothing: does not exist; expected a checkpoint or run folder"):
        load(section(checkpoint=str(tmp_path / "nothing")), CPU)
    with pytest.raises(UserError, match=r"0000001\.pt: a file does not carry the shape of its network; give that"):
        load(section(), CPU)
    with pytest.raises(UserError, match="folder: a checkpoint folder carries the shape of its network"):
        load(section(checkpoint=str(folder), lightningdit=network.config), CPU)
    with pytest.raises(UserError, match="found shapes of LightningDiT and of REG, expected one"):
        load(section(lightningdit=network.config, reg=networks["reg"].config), CPU)
    with pytest.raises(CheckpointError, match="the weights do not fit the configuration"):
        load(section(lightningdit=network.config.model_copy(update={"depth": 2})), CPU)
    with pytest.raises(UserError, match=r"parts: found 'block_3', .* Closest: block_2\."):
        load(section(lightningdit=network.config, parts=["block_3"]), CPU)
    with pytest.raises(UserError, match=r"timesteps: found \[0\.5, 0\.5001\], expected numbers that differ"):
        load(section(lightningdit=network.config, timesteps=[0.5, 0.5001]), CPU)
    with pytest.raises(UserError, match="use_label: false takes the null class, but this network was trained without"):
        DiffusionFeatures(seeded(lightningdit, class_dropout_prob=0.0))
    with pytest.raises(DataError, match=r"latent_multiplier: found 1, but .*folder was trained with 0\.5"):
        open_latents(section(checkpoint=str(folder)), network)
    write_statistics(latents, MEAN + 1, STD)
    with pytest.raises(DataError, match=r"mean in latents_stats\.pt is not that of the latents which .*folder was"):
        open_latents(section(checkpoint=str(folder), latent_multiplier=0.5), network)


def test_latents_that_do_not_fit_are_named(networks, latents, tmp_path):
    def opened(folder: Path, family: str = "lightningdit", **values):
        return open_latents(DiffusionSection(checkpoint="x.pt", latents=str(folder), **values), networks[family])

    wide = write_latents(tmp_path / "wide", latents=torch.zeros(4, CHANNELS, 2, 2))
    (wide / "latents_rank00_batch001.safetensors").unlink()
    with pytest.raises(DataError, match=r"wide: latents have the shape \[5, 2, 2\], but the network of x\.pt takes"):
        opened(wide)
    with pytest.raises(DataError, match=r"found the label 10, but the network has the classes 0 to 9"):
        labelled = write_latents(tmp_path / "labels", labels=torch.tensor([0, 10, 1, 2]))
        (labelled / "latents_rank00_batch001.safetensors").unlink()
        opened(labelled, use_label=True)
    opened(labelled)  # nobody asks for these labels
    narrow = write_latents(tmp_path / "narrow", dinov2_cls_tokens=torch.zeros(4, 2))
    (narrow / "latents_rank00_batch001.safetensors").unlink()
    with pytest.raises(DataError, match=r"class tokens have 2 channels, .* takes 12; give prefetch\.py the encoder"):
        opened(narrow, "reg")
    for path in latents.glob("*.safetensors"):
        save_file({k: v for k, v in load_file(path).items() if k != "dinov2_cls_tokens"}, path)
    with pytest.raises(
        DataError, match=r"expected also dinov2_cls_tokens\. .*prefetch\.py with --class-encoder writes"
    ):
        opened(latents, "reg")
    (latents / "latents_stats.pt").unlink()
    with pytest.raises(DataError, match=r"latents_stats\.pt: missing; latents cannot be normalised without it"):
        opened(latents)
    with pytest.raises(DataError, match=r"nothing: not a folder.*evaluate_alignment/prefetch\.py writes"):
        opened(tmp_path / "nothing")


# --- commands ------------------------------------------------------------------------------------------------------


def test_extract_writes_one_file_per_part_and_noise_and_keeps_them(networks, latents, tmp_path, monkeypatch, capsys):
    torch.save(networks["reg"].state_dict(), tmp_path / "0000001.pt")
    shape = [f"{key}={value}" for key, value in TINY_REG.items()]
    command = ["diffusion", "--checkpoint", tmp_path / "0000001.pt", "--reg", *shape, "--latents", latents,
               "--timesteps", 0.1, 0.5, "--parts", "block_1", "projector_0", "--device", "cpu",
               "--output-dir", tmp_path / "out", "--output-prefix", "reg"]  # fmt: skip
    run_tool(monkeypatch, "extract.py", *command)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"reg_{part}_t{t}.pt" for part in ("block_1", "projector_0") for t in ("0.100", "0.500")
    ]
    found = read_features(tmp_path / "out" / "reg_projector_0_t0.100.pt")
    assert found.names == tuple(sorted(NAMES)) and found.features.shape == (7, TINY_REG["z_dims"][0])
    facts = {"feature_name": "projector_0", "timestep": 0.1, "num_images": 7, "sorted": True, "sorted_by": "name"}
    assert facts.items() <= found.facts.items()
    assert "7 images, timesteps: 2 extracted, 0 kept; block_1, projector_0" in capsys.readouterr().out
    run_tool(monkeypatch, "extract.py", *command, "--timesteps", 0.5, 0.9, "--parts", "block_1")
    assert "7 images, timesteps: 1 extracted, 1 kept; block_1" in capsys.readouterr().out
    write_statistics(latents, MEAN, 2 * STD)
    run_tool(monkeypatch, "extract.py", *command)
    assert "timesteps: 2 extracted" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, "extract.py", *command, "--reg", "depth")
    assert "--reg: found 'depth', expected key=value" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"reg\.dept: unknown key\. Closest: depth"):
        run_tool(monkeypatch, "extract.py", *command, "--reg", "dept=3")


def test_layers_of_a_diffusion_model_are_compared_with_a_vfm(networks, latents, tiny_encoder, tmp_path, monkeypatch):
    (tmp_path / "images" / "clean").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in NAMES:
        pixels = np.kron(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((8, 8, 1), dtype=np.uint8))
        Image.fromarray(pixels).save(tmp_path / "images" / "clean" / f"{name}.png")
    write_folder(tmp_path / "run", networks["lightningdit"])
    path = tmp_path / "alignment.yaml"
    path.write_text(
        f"images: {tmp_path / 'images'}\noutput_dir: {tmp_path / 'out'}\nresolution: 32\ndevice: cpu\n"
        f"vfms: {{vfm: {{vfm_name: {tiny_encoder}}}}}\n"
        f"diffusion_models:\n  dit: {{checkpoint: {tmp_path / 'run'}, latents: {latents}, timesteps: [0.25, 0.5]}}\n"
        "rows: [dit, vfm]\ncolumns: [vfm, dit]\ntopk: 3\nhalves: 0\nconditions: []\ninclude_clean: true\n"
    )
    run_tool(monkeypatch, "run.py", "--config", path)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    parts = networks["lightningdit"].feature_names
    assert report["rows"] == [f"dit {part}_t{t}" for t in ("0.250", "0.500") for part in parts] + ["vfm"]
    assert report["columns"] == [report["rows"][-1], *report["rows"][:-1]]
    assert report["clean"]["values"][3][4] == pytest.approx(1, abs=1e-3)  # a layer with itself
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 1 and "on the clean images." in page and "SE-" not in page
    run_tool(monkeypatch, "run.py", "--config", path, "--set", "columns=[vfm]")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 3  # and a curve over the layers for each share of noise
    assert all(f"CKNNA over the layers of dit at {share}% noise" in page for share in ("25.0", "50.0"))
    with pytest.raises(ConfigError, match=r"conditions: found \['grid'\], but dit has features of clean images only"):
        load_alignment_config(path, ["conditions=[grid]"])
    assert load_alignment_config(path, ["conditions=[grid]", "rows=[vfm]", "reference=clean"]).columns == ["vfm", "dit"]
    with pytest.raises(ConfigError, match="conditions: found none; name transformations, or score the clean images"):
        load_alignment_config(path, ["include_clean=false"])
