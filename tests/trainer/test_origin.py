"""Where weights come from, and their licence, follow them through a run and all that it writes."""

from __future__ import annotations

import json
import logging

import torch

from networks.checkpoint import origin_of
from networks.checkpoint.convert import folder_to_reference, reference_to_folder
from networks.checkpoint.origin import UNKNOWN_LICENCE, Origin
from tests.trainer.conftest import build_trainer, run_until


def derived_from(run_dir) -> list[dict | None]:
    """What the checkpoints of a run record, oldest first."""
    folders = sorted((run_dir / "checkpoints").iterdir())
    return [json.loads((folder / "manifest.json").read_text())["derived_from"] for folder in folders]


def test_a_run_from_converted_weights_carries_their_licence_through_a_resume(make_config, tmp_path, caplog):
    first = run_until(build_trainer(make_config(changes={"training.total_kimg": 0.008})))
    run_dir = tmp_path / "run"
    assert derived_from(run_dir) == [None]
    assert folder_to_reference(run_dir, tmp_path).origin is None
    pth = tmp_path / "network-snapshot-00000000.pth"
    assert origin_of(pth) == Origin(pth.name, UNKNOWN_LICENCE)
    config = first.config.tokenizer()
    origin = reference_to_folder(pth, tmp_path / "model", config, licence="CC BY-NC 4.0").origin

    changes = {"run.run_dir": str(tmp_path / "second"), "training.init_from": str(tmp_path / "model")}
    config = make_config(changes={**changes, "training.total_kimg": 0.016})
    with caplog.at_level(logging.INFO):
        run_until(build_trainer(config), step=2)
    expected = f"What this run writes derives from {pth.name}, licence: CC BY-NC 4.0."
    assert expected in caplog.text
    run_until(build_trainer(config))
    assert derived_from(tmp_path / "second") == [origin.to_json()] * len(derived_from(tmp_path / "second"))
    folder_to_reference(tmp_path / "second", tmp_path / "back.pth")
    assert origin_of(tmp_path / "back.pth") == origin


def test_a_run_starts_from_a_reference_file_and_from_its_folder_alike(make_config, tmp_path):
    first = build_trainer(make_config())
    first.system.average.decoder.mapping.x_avg.fill_(2.0)  # so that EMA and raw weights differ
    weights = {**first.system.tokenizer.state_dict()}, {**first.system.average.state_dict()}
    from networks.checkpoint.reference import ReferenceCheckpoint, to_reference_state, write_reference

    raw, average = (to_reference_state(state, "siglip2") for state in weights)
    write_reference(tmp_path / "a.pth", ReferenceCheckpoint(average, raw))
    reference_to_folder(tmp_path / "a.pth", tmp_path / "model", first.config.tokenizer())
    for path in (tmp_path / "a.pth", tmp_path / "model"):
        trainer = build_trainer(
            make_config(
                changes={"run.random_seed": 9, "training.init_from": str(path), "training.init_discriminator": False}
            )
        )
        trainer.system.load_initial(str(path))
        for found, expected in zip((trainer.system.tokenizer, trainer.system.average), weights, strict=True):
            assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
