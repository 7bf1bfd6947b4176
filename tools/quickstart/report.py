"""Write the quick start's report: a self-contained HTML page and a JSON file of results."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.command import run_command

PUBLISHED = "vfm_vae_f16d32_siglip2_stage_0_strong_alignment"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", required=True, type=Path, help="training run; gets report.html and results.json")
    parser.add_argument("--images-dir", required=True, type=Path, help="output of reconstruct.py")
    parser.add_argument("--photographs", required=True, type=Path, help="photographs.json of the crops")
    parser.add_argument(
        "--published-config",
        type=Path,
        default=Path(__file__).parents[2] / "configs" / f"{PUBLISHED}.yaml",
        help="configuration to compare with (default: the published stage 0)",
    )
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse_arguments()
    from common.files import write_json_atomically, write_text_atomically
    from configs.schema import load_config, of_kind
    from configs.vfm_vae import VFMVAEExperiment
    from evaluation.quickstart_report import Report, read_photographs, render, results_of, score_crops
    from evaluation.training_log import summarise_log
    from trainer.metrics import read_log

    log_path = arguments.run_dir / "log.jsonl"
    run = of_kind(load_config(arguments.run_dir / "config.yaml"), VFMVAEExperiment)
    report = Report(
        crops=score_crops(arguments.images_dir),
        photographs=read_photographs(arguments.photographs),
        log=summarise_log(read_log(log_path), str(log_path)),
        model=facts_of(run),
        published=facts_of(of_kind(load_config(arguments.published_config), VFMVAEExperiment)),
        published_name=arguments.published_config.stem,
        seed=run.run.random_seed,
    )
    results = results_of(report)
    write_json_atomically(arguments.run_dir / "results.json", results)
    write_text_atomically(arguments.run_dir / "report.html", render(report))
    print_table(results)
    print(f"report: {(arguments.run_dir / 'report.html').resolve()}")


def facts_of(config):
    """What the report compares of a configuration; parameters are counted without memory for them."""
    import torch

    from evaluation.quickstart_report import ModelFacts
    from networks.vfm_vae import VFMVAETokenizer

    with torch.device("meta"):
        trained = VFMVAETokenizer(config.tokenizer(), encoder=None)
    return ModelFacts(
        tokenizer=config.tokenizer(),
        parameters=sum(parameter.numel() for parameter in trained.parameters()),
        batch_size=config.training.batch_size,
        total_kimg=config.training.total_kimg,
        losses=tuple(config.enabled_losses()),
    )


def print_table(results: dict) -> None:
    rows = (
        ("tokenizer", results["psnr"], results["ssim"]),
        ("8x down and up", results["baseline_down8_psnr"], results["baseline_down8_ssim"]),
        ("mean colour", results["baseline_mean_colour_psnr"], results["baseline_mean_colour_ssim"]),
    )
    print(f"{results['count']} held-out crops of {', '.join(results['held_out'])}, seed {results['seed']}")
    print(f"{'':16}{'PSNR, dB':>10}{'SSIM':>8}")
    for name, psnr, ssim in rows:
        print(f"{name:16}{psnr:>10.2f}{ssim:>8.3f}")


if __name__ == "__main__":
    run_command(main)
