"""Tokenizers of other kinds train, resume exactly, and can be loaded, estimated and timed."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import Source
from common.errors import CheckpointError, DataError, UserError
from configs.schema import check
from configs.vfm_vae import VFMVAEExperiment
from data.pipeline import Batch
from networks.checkpoint import load_tokenizer
from networks.checkpoint.convert import folder_to_reference
from tests.data.sample_files import encoded, pixels_of, write_tar
from tests.tiny import SMALL, tiny_values, write_class_texts
from tests.trainer.conftest import build_trainer, merged, run_until, state_of
from tools.reconstruct.reconstruct import refuse_conditional
from trainer.benchmark import measure
from trainer.dry_run import describe
from trainer.systems.vfm_vae import VFMVAESystem

CLASSES = {
    "data.label_type": "cls2id",
    "decoder.conditional": True,
    "decoder.label_type": "cls2id",
    "decoder.label_dim": 3,
}
TEXTS = {"data.label_type": "cls2text", "decoder.conditional": True, "decoder.use_cross_attn": True}
NO_CONVNEXT = {
    "decoder.use_convnext": False,
    "decoder.channel_base": 8192,
    "decoder.use_multiscale_output": False,
    "losses.multiscale_pixel": None,
    "equivariance.use_equivariance_regularization": False,
}
THREE_STEPS = {
    **SMALL,
    "training.total_kimg": 0.012,
    "logging.image_snapshot_ticks": 1,
}
KINDS = {"classes": CLASSES, "texts": TEXTS, "no ConvNeXt": NO_CONVNEXT}


@pytest.fixture
def config_of(tiny_text_encoder, tiny_data, tmp_path):
    """A small configuration of a kind: three steps, with a sample grid after each tick."""

    def make(changes: dict[str, Any], name: str = "run") -> VFMVAEExperiment:
        changes = {**THREE_STEPS, **changes}
        if "cls2text" in changes.values():
            changes["data.cls_to_text_path"] = str(write_class_texts(tmp_path / "texts.json"))
        values = merged(tiny_values(tiny_text_encoder, tiny_data, tmp_path / name), changes)
        return check(Source("tiny.yaml", values), require_runnable=True).config

    return make


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_training_on_one_batch_lowers_its_loss(config_of, changes: dict[str, Any]) -> None:
    changes = {
        **changes,
        "equivariance.use_equivariance_regularization": False,
        "optimizer.generator.lr": 0.01,
        "losses.kl": None,
        "losses.vf": None,
    }
    trainer = build_trainer(config_of(changes))
    batches, losses = itertools.repeat(trainer.data.dataset[0]), []
    for _ in range(14):
        trainer.train_step(batches)
        losses.append(trainer.means.take()["loss/l1_pixel"])
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_a_run_resumes_exactly_and_can_be_loaded(config_of, changes: dict[str, Any]) -> None:
    unbroken = run_until(build_trainer(config_of(changes, "unbroken")))
    config = config_of(changes, "stopped")
    assert run_until(build_trainer(config), 2).step == 2
    resumed = run_until(build_trainer(config))
    expected, found = state_of(unbroken), state_of(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())

    run_dir = Path(config.run.run_dir)
    assert list((run_dir / "samples").glob("*.png"))

    loaded = load_tokenizer(run_dir)
    z = torch.randn(2, 4, 4, 4)
    c = {"classes": torch.eye(3)[:2], "texts": ["a red fox", "crane"]}.get(
        next(name for name, kind in KINDS.items() if kind is changes)
    )
    with torch.no_grad():
        again = resumed.system.average.decode(z, c).reconstruction
        assert torch.equal(loaded.decode(z, c).reconstruction, again)
    reference = run_dir / "reference.pth"
    if c is None:
        refuse_conditional(loaded.config)
        folder_to_reference(run_dir, reference)
        with torch.no_grad():
            assert torch.equal(load_tokenizer(reference, loaded.config).decode(z).reconstruction, again)
    else:
        with pytest.raises(CheckpointError, match=r"kind that the reference cannot run \(decoder\.conditional: true\)"):
            folder_to_reference(run_dir, reference)
        with pytest.raises(UserError, match=r"decoder is conditional on labels .* which a folder of images does not"):
            refuse_conditional(loaded.config)


def test_a_class_beyond_the_decoders_classes_stops_the_run(config_of) -> None:
    trainer = build_trainer(config_of({**CLASSES, "decoder.label_dim": 2}))
    with pytest.raises(DataError, match=r"found class 2, but decoder\.label_dim is 2; it must be above"):
        trainer.run()


def test_captions_are_embedded_anew_for_each_batch(config_of) -> None:
    config = config_of({**TEXTS, "decoder.label_type": "text"})
    config = config.model_copy(update={"data": config.data.model_copy(update={"label_type": "text"})})
    system = VFMVAESystem(config, torch.device("cpu"))
    assert system.embed_texts is system.tokenizer.encoder.text_encoder
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    shown = system.sample_images(Batch(images, None, ["a red fox", "crane"], ["a", "b"], range(2)))
    other = system.sample_images(Batch(images, None, ["a red fox", "a blue whale"], ["a", "b"], range(2)))
    assert torch.equal(shown[0], other[0]) and not torch.equal(shown[1], other[1])


@pytest.mark.parametrize("changes", [TEXTS, NO_CONVNEXT], ids=["texts", "no ConvNeXt"])
def test_a_dry_run_counts_what_training_trains(config_of, changes: dict[str, Any]) -> None:
    config = config_of(changes)
    trained = build_trainer(config).system.selection.trainable
    rows = dict(line.split("  ", 1) for line in describe(config, ranks=1).splitlines())
    assert rows["trainable parameters"].split()[0] == f"{trained:,}"


def test_a_dry_run_counts_the_discriminators_and_their_part(config_of, monkeypatch) -> None:
    monkeypatch.setattr("trainer.dry_run.gemm_flops_per_second", lambda device: 1e12)
    plain = config_of(CLASSES)
    config = config_of(
        {
            **CLASSES,
            "discriminator": {
                "use_stylegan_t_discriminator": True,
                "backbone": "random_tiny",
                "use_patchgan_discriminator": True,
                "get_interm_feat": True,
            },
            "losses.stylegan_t": {"weight": 1.0},
            "losses.patchgan": {"weight": 1.0},
            "losses.feature_matching": {"weight": 1.0},
        }
    )
    discriminators = build_trainer(config).system.adversary.discriminators
    trainable, frozen = (sum(p.numel() for p in discriminators.parameters() if p.requires_grad == r) for r in (1, 0))
    without, rows = (dict(line.split("  ", 1) for line in describe(c, ranks=1).splitlines()) for c in (plain, config))
    assert "discriminators" not in without and "discriminators" not in without["memory per rank"]
    assert re.fullmatch(rf" *{trainable:,} \(.* M\) trainable, {frozen:,} \(.* M\) frozen", rows["discriminators"])
    memory, of_them = (float(x) for x in re.findall(r"([\d.]+) GB", rows["memory per rank"]))
    (memory_without,) = (float(x) for x in re.findall(r"([\d.]+) GB", without["memory per rank"]))
    assert memory - memory_without == pytest.approx(of_them, abs=0.011)
    assert of_them > (16 * trainable + 4 * frozen) / 1e9
    work, work_without = (float(re.search(r"([\d.]+) TFLOP", r["FLOPs per kimg"])[1]) for r in (rows, without))
    share = float(re.search(r"; ([\d]+)% of it for the discriminators", rows["FLOPs per kimg"])[1])
    assert 1 - work_without / work == pytest.approx(share / 100, abs=0.06)


def test_a_dry_run_says_that_the_width_of_absent_texts_is_unknown(config_of) -> None:
    config = config_of(TEXTS)
    absent = config.encoder.model_copy(update={"vfm_name": "google/siglip2-large-patch16-512"})
    with pytest.raises(UserError, match=r"needs the text model at encoder\.vfm_name, which tells the width"):
        describe(config.model_copy(update={"encoder": absent}), ranks=1)


def test_the_benchmark_times_a_conditional_tokenizer(config_of) -> None:
    measured = measure(config_of(TEXTS), torch.device("cpu"), batch_size=2, repeats=1, gemm_side=64)
    assert measured.parts["decode"].gflop > 0 and measured.parts["step"].gflop > measured.parts["decode"].gflop
    assert "embedded once" in measured.left_out["text model"]


def test_a_run_on_captions_resumes_exactly(config_of, tmp_path) -> None:
    keys = [f"picture_{number}" for number in range(8)]
    members = [(f"{key}.png", encoded(pixels_of(key, 40, 40))) for key in keys]
    members += [(f"{key}.txt", f"crane {number}".encode()) for number, key in enumerate(keys)]
    write_tar(tmp_path / "data" / "0.tar", members)
    changes = {**TEXTS, "data.label_type": "text", "decoder.label_type": "text", "data.path": str(tmp_path / "data")}
    unbroken = run_until(build_trainer(config_of(changes, "unbroken")))
    run_until(build_trainer(config_of(changes, "stopped")), 2)
    expected, found = state_of(unbroken), state_of(run_until(build_trainer(config_of(changes, "stopped"))))
    assert unbroken.step == 3 and all(torch.equal(value, found[name]) for name, value in expected.items())
