#!/usr/bin/env bash
#
# Samples tokens from a trained autoregressive model, on all GPUs of this machine; tools/decode/decode.sh makes images of
# them. Start it again after an interruption: what is finished is kept.
#
#   CHECKPOINT=runs/gpt_c2i_b OUTPUT_DIR=samples tools/preprocess_for_gpt/sample.sh --cfg-scale 1.75
#
# CHECKPOINT is a run or checkpoint folder, or a reference file (with --use-config). Arguments go to sample.py.

set -euo pipefail

: "${CHECKPOINT:?run or checkpoint folder}" "${OUTPUT_DIR:?folder to write}"
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

exec "${PYTHON:-python}" -m torch.distributed.run --standalone --nproc_per_node="${NPROC:-gpu}" \
    tools/preprocess_for_gpt/sample.py --checkpoint "$CHECKPOINT" --output-dir "$OUTPUT_DIR" "$@"
