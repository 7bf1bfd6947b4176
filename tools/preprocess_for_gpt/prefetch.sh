#!/usr/bin/env bash
#
# Writes the tokens of a labelled data set for autoregressive models, on all GPUs of this machine. Start it again after
# an interruption: what is finished is kept.
#
#   DATA_PATH=datasets/imagenet-1k-train VAE_PTH=runs/my_run OUTPUT_DIR=tokens tools/preprocess_for_gpt/prefetch.sh
#
# DATA_PATH is a folder of *.tar shards. USE_CONFIG names the YAML of a checkpoint that does not carry one (a reference
# .pth). Arguments go to prefetch.py.

set -euo pipefail

: "${DATA_PATH:?shards to read}" "${OUTPUT_DIR:?folder to write}" "${VAE_PTH:?checkpoint}"
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

exec "${PYTHON:-python}" -m torch.distributed.run --standalone --nproc_per_node="${NPROC:-gpu}" \
    tools/preprocess_for_gpt/prefetch.py \
    --data-path "$DATA_PATH" --output-dir "$OUTPUT_DIR" --vae-pth "$VAE_PTH" \
    ${USE_CONFIG:+--use-config "$USE_CONFIG"} "$@"
