#!/usr/bin/env bash
#
# Reconstructs a set of images on all GPUs of this machine and compares the result with its input.
#
#   INPUT_DIR=datasets/imagenet-1k-validation VAE_PTH=runs/my_run OUTPUT_DIR=out tools/reconstruct/reconstruct.sh
#
# INPUT_DIR is a folder of images or of *.tar shards. NPROC is the number of processes (default: one per GPU; NPROC=1
# without a GPU), PYTHON the interpreter (default: python). USE_CONFIG names the YAML of a checkpoint that does not carry one
# (a reference .pth); INCEPTION_WEIGHTS the Inception weights for rFID, rIS and KID. Arguments go to reconstruct.py.

set -euo pipefail

: "${INPUT_DIR:?images to reconstruct}" "${OUTPUT_DIR:?folder for inputs/ and outputs/}" "${VAE_PTH:?checkpoint}"
tools="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
export PYTHONPATH="${tools%/tools/reconstruct}${PYTHONPATH:+:$PYTHONPATH}"
python="${PYTHON:-python}"

"$python" -m torch.distributed.run --standalone --nproc_per_node="${NPROC:-gpu}" "$tools/reconstruct.py" \
    --input-dir "$INPUT_DIR" --output-dir "$OUTPUT_DIR" --vae-pth "$VAE_PTH" \
    ${USE_CONFIG:+--use-config "$USE_CONFIG"} "$@"
"$python" "$tools/evaluate.py" --ref-dir "$OUTPUT_DIR/inputs" --pred-dir "$OUTPUT_DIR/outputs" \
    ${INCEPTION_WEIGHTS:+--all --inception-weights "$INCEPTION_WEIGHTS"}
