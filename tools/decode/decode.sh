#!/usr/bin/env bash
#
# Decodes sampled latents on all GPUs of this machine, lists their labels, and packs the images for evaluation.
#
#   INPUT_DIR=samples VAE_PTH=runs/my_run OUTPUT_DIR=out tools/decode/decode.sh
#
# INPUT_DIR holds *.safetensors shards. OUTPUT_DIR gets images/, labels.json and samples.npz with the first NUM (50000)
# images; REFERENCE names a reference batch to compare them with. NPROC is the number of processes (default: one per GPU;
# NPROC=1 without a GPU), PYTHON the interpreter (default: python). USE_CONFIG names the YAML of a checkpoint that does not
# carry one (a reference .pth). Arguments go to decode_latents_to_images.py.

set -euo pipefail

: "${INPUT_DIR:?shards of latents}" "${OUTPUT_DIR:?folder for images/, labels.json, samples.npz}" "${VAE_PTH:?checkpoint}"
tools="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
root="${tools%/tools/decode}"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
python="${PYTHON:-python}"

"$python" -m torch.distributed.run --standalone --nproc_per_node="${NPROC:-gpu}" \
    "$tools/decode_latents_to_images.py" \
    --input-dir "$INPUT_DIR" --output-dir "$OUTPUT_DIR/images" --vae-pth "$VAE_PTH" \
    ${USE_CONFIG:+--use-config "$USE_CONFIG"} "$@"
"$python" "$tools/decode_latents_to_labels.py" --input-dir "$INPUT_DIR" --output-json "$OUTPUT_DIR/labels.json" \
    --class-index-json "$root/imagenet_info/imagenet_1k_cls_to_text.json"
"$python" "$tools/save_images_as_npz.py" --input-dir "$OUTPUT_DIR/images" --output-npz "$OUTPUT_DIR/samples.npz" \
    --num "${NUM:-50000}"
if [[ -n "${REFERENCE:-}" ]]; then
    "$python" "$root/tools/evaluate_generation.py" --ref "$REFERENCE" --sample "$OUTPUT_DIR/samples.npz" \
        --output-json "$OUTPUT_DIR/metrics.json"
fi
