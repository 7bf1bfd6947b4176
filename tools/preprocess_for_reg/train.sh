#!/usr/bin/env bash
#
# Trains REG on prefetched latents, on all GPUs of this machine. Start it again after an interruption: it goes on from
# its newest checkpoint.
#
#   LATENTS=datasets/reg_latents tools/preprocess_for_reg/train.sh
#
# CONFIG names another YAML than configs/reg_xl1.yaml. Arguments go to train.py, e.g. --set training.batch_size=256.

set -euo pipefail

: "${LATENTS:?folder that prefetch.sh wrote}"
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

exec "${PYTHON:-python}" -m torch.distributed.run --standalone --nproc_per_node="${NPROC:-gpu}" \
    train.py --config "${CONFIG:-configs/reg_xl1.yaml}" --set "data.path=$LATENTS" "$@"
