#!/usr/bin/env bash
#
# Features of a vision foundation model and of a tokenizer on clean and transformed images, their SE-CKNNA, and the
# latents from which features of diffusion models start. run.py compares many models from one YAML and draws a report.
#
#   DATA=datasets/imagenet-1k-validation VFM=pretrained/dinov2-large VAE_PTH=runs/my_run OUTPUT_DIR=runs/alignment \
#       tools/evaluate_alignment/extract.sh
#
# DATA is a folder of images or of *.tar shards, from which NUM_IMAGES are drawn. SCALE_FACTOR resizes what the VFM sees
# (0.875: 256 pixels -> 224). USE_CONFIG names the YAML of a checkpoint that does not carry one (a reference .pth);
# SD_VAE a folder of an AutoencoderKL of diffusers, to be compared too. Images and features that are there already are
# kept. Arguments go to prefetch.py.

set -euo pipefail

: "${DATA:?images to draw from}" "${VFM:?reference model}" "${VAE_PTH:?checkpoint}" "${OUTPUT_DIR:?folder for results}"
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python="${PYTHON:-python}"
tools=tools/evaluate_alignment
images="$OUTPUT_DIR/images"
features="$OUTPUT_DIR/features"
resolution="${RESOLUTION:-256}"

on_all_gpus() {
    "$python" -m torch.distributed.run --standalone --nproc_per_node="${NPROC:-gpu}" "$@" --resolution "$resolution"
}

extract() {
    on_all_gpus "$tools/extract.py" "$@" --input-dir "$images" --output-dir "$features"
}

# Features of one model ($1), and their agreement with the VFM's.
compare() {
    "$python" "$tools/se_cknna.py" --feat-prefix1 "$features/$1" --feat-prefix2 "$features/vfm" --halves 20 \
        --output "$OUTPUT_DIR/$1.json"
}

if [ ! -d "$images/noise_0.200" ]; then
    draw=(--draw-from "$DATA" --num-images "${NUM_IMAGES:-10000}")
    if [ -d "$images/clean" ]; then draw=(); fi
    "$python" "$tools/preprocess.py" --output-dir "$images" "${draw[@]}" --resolution "$resolution"
fi

extract vfm --vfm-name "$VFM" --scale-factor "${SCALE_FACTOR:-0.875}" --output-prefix vfm
extract tokenizer --vae-pth "$VAE_PTH" ${USE_CONFIG:+--use-config "$USE_CONFIG"} --output-prefix vfm_vae
compare vfm_vae
if [ -n "${SD_VAE:-}" ]; then
    extract autoencoder --path "$SD_VAE" --output-prefix sd_vae
    compare sd_vae
fi

on_all_gpus "$tools/prefetch.py" tokenizer --vae-pth "$VAE_PTH" ${USE_CONFIG:+--use-config "$USE_CONFIG"} \
    --input-dir "$images/clean" --output-dir "$OUTPUT_DIR/latents" "$@"
