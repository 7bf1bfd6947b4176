#!/usr/bin/env bash
#
# Trains an autoregressive model on prefetched tokens, on all GPUs of this machine. Start it again after an
# interruption: it goes on from its newest checkpoint.
#
#   TOKENS=datasets/gpt_tokens tools/preprocess_for_gpt/train.sh
#
# CONFIG names another YAML than configs/gpt_c2i_b.yaml. Arguments go to train.py, e.g. --set training.batch_size=256.

set -euo pipefail

: "${TOKENS:?folder that prefetch.sh wrote}"
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

exec "${PYTHON:-python}" -m torch.distributed.run --standalone --nproc_per_node="${NPROC:-gpu}" \
    train.py --config "${CONFIG:-configs/gpt_c2i_b.yaml}" --set "data.path=$TOKENS" "$@"
