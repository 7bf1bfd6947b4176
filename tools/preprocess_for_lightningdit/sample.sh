#!/usr/bin/env bash
#
# Samples latents from a trained LightningDiT, on all GPUs of this machine; tools/decode/decode.sh makes images of them. Start it
# again after an interruption: what is finished is kept.
#
#   CHECKPOINT=runs/lightningdit_xl1_stage_1 OUTPUT_DIR=samples tools/preprocess_for_lightningdit/sample.sh --set sample.cfg_scale=4.0
#
# CHECKPOINT is a run or checkpoint folder. Arguments go to sample.py.

set -euo pipefail

: "${CHECKPOINT:?run or checkpoint folder}" "${OUTPUT_DIR:?folder to write}"
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

exec "${PYTHON:-python}" -m torch.distributed.run --standalone --nproc_per_node="${NPROC:-gpu}" \
    tools/preprocess_for_lightningdit/sample.py --checkpoint "$CHECKPOINT" --output-dir "$OUTPUT_DIR" "$@"
