"""Compare reconstructions with their originals: PSNR, SSIM and, with a local VGG16 trunk, LPIPS."""

from __future__ import annotations

import argparse

from common.command import run_command

LPIPS_LEFT_OUT = "left out: no VGG16 trunk given (--lpips-vgg16 vgg16-397923af.pth)"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ref-dir", required=True, help="originals (the inputs/ folder of reconstruct.py)")
    parser.add_argument("--pred-dir", required=True, help="reconstructions (its outputs/ folder)")
    parser.add_argument("--batch-size", type=int, default=64, help="pairs per batch; does not change the numbers")
    parser.add_argument("--num-workers", type=int, default=8, help="threads that read images")
    parser.add_argument("--output-json", help="write the means and the protocol here")
    parser.add_argument("--per-image-csv", help="write one line per pair here")
    parser.add_argument("--psnr-cap", type=float, default=100.0, help="most dB that one pair counts (default: 100)")
    parser.add_argument("--allow-unmatched", action="store_true", help="ignore images that have no partner")
    parser.add_argument("--lpips-vgg16", help="torchvision's VGG16 weights file; without it LPIPS is left out")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")
    parsed = parser.parse_args(arguments)
    if parsed.batch_size < 1 or parsed.num_workers < 0:
        parser.error("--batch-size must be at least 1 and --num-workers at least 0")
    return parsed


def main() -> None:
    arguments = parse_arguments()
    from common.distributed import pick_device
    from common.files import write_json_atomically
    from evaluation.quality import as_record, pair_folders, score_pairs, summarise, write_csv

    pairs = pair_folders(arguments.ref_dir, arguments.pred_dir, arguments.allow_unmatched)
    device = pick_device(arguments.device)
    lpips = None
    if arguments.lpips_vgg16:
        from losses.lpips import load_lpips

        lpips = load_lpips(arguments.lpips_vgg16).to(device)
    scores = score_pairs(
        pairs,
        batch_size=arguments.batch_size,
        workers=arguments.num_workers,
        device=device,
        lpips=lpips,
        show_progress=True,
    )
    summary = summarise(scores, arguments.psnr_cap)
    if arguments.per_image_csv:
        write_csv(arguments.per_image_csv, scores)
    if arguments.output_json:
        protocol = {
            "psnr": "mean of per-image PSNR in dB over all channels and pixels of 8-bit images",
            "ssim": "Gaussian window, sigma 1.5, 11 x 11, images in [-1, 1], whole map (reflected border)",
            "ssim_01": "the same on images in [0, 1]",
            "lpips": "VGG16, version 0.1 heads" if lpips is not None else LPIPS_LEFT_OUT,
        }
        write_json_atomically(
            arguments.output_json, as_record(summary) | {"unmatched": len(pairs.unmatched), "protocol": protocol}
        )
    print(f"Total:   {summary.total} pairs" + (f" ({len(pairs.unmatched)} unmatched)" if pairs.unmatched else ""))
    print(f"LPIPS:   {LPIPS_LEFT_OUT if summary.lpips is None else f'{summary.lpips:.4f}'}")
    cap = f"  ({summary.capped} pairs above {summary.psnr_cap:g} dB counted as that)" if summary.capped else ""
    print(f"PSNR:    {summary.psnr:.4f} dB{cap}")
    print(f"SSIM:    {summary.ssim:.4f}  (images in [-1, 1], the convention of published tokenizer tables)")
    print(f"ssim_01: {summary.ssim_01:.4f}  (images in [0, 1])")


if __name__ == "__main__":
    run_command(main)
