#!/usr/bin/env bash
#
# VFMTok and an autoregressive model in small, on one CPU core and without a network: the digit scans of scikit-learn, a
# discrete tokenizer, a GPT on its tokens, 500 samples without and with guidance, and a classifier that judges them.
#
#   tools/digits/run_vfmtok.sh
#
# Everything goes to runs/digits, the scores to runs/digits/vfmtok_scores/results.json. Start it again after an
# interruption: what is finished is kept. docs/vfmtok.md says what to expect.

set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
source tools/digits/common.sh
tokenizer="$runs/vfmtok"

say "1/6 digit scans"
"$python" tools/digits/prepare.py --output-dir "$runs/data"

say "2/6 tokenizer"
"$python" train.py --config configs/digits_vfmtok.yaml --set run.device=cpu
"$python" tools/reconstruct/reconstruct.py --input-dir "$runs/data/heldout" --output-dir "$runs/vfmtok_reconstructions" \
    --vae-pth "$tokenizer" --skip-existing "${on_cpu[@]}"
"$python" tools/reconstruct/evaluate.py --ref-dir "$runs/vfmtok_reconstructions/inputs" \
    --pred-dir "$runs/vfmtok_reconstructions/outputs" "${on_cpu[@]}"

say "3/6 tokens"
"$python" tools/preprocess_for_gpt/prefetch.py --data-path "$runs/data/training" --resolution 32 --crops ten \
    --vae-pth "$tokenizer" --output-dir "$runs/tokens" "${on_cpu[@]}"

say "4/6 GPT"
"$python" train.py --config configs/digits_gpt.yaml --set run.device=cpu

say "5/6 samples"
sets=()
for guidance in without with; do
    name="gpt_${guidance}_guidance"
    scale=()
    [[ "$guidance" == with ]] || scale=(--cfg-scale 1.0)
    "$python" tools/preprocess_for_gpt/sample.py --checkpoint "$runs/gpt" --num-samples 500 --labels balanced \
        --batch-size-per-gpu 100 --output-dir "$runs/samples/$name" "${on_cpu[@]}" "${scale[@]}"
    "$python" tools/decode/decode_latents_to_images.py --input-dir "$runs/samples/$name" \
        --output-dir "$runs/decoded/$name" --vae-pth "$tokenizer" "${on_cpu[@]}"
    sets+=(--samples "$name=$runs/decoded/$name")
done

say "6/6 scores"
"$python" tools/digits/score.py --reconstructions "$runs/vfmtok_reconstructions/outputs" "${sets[@]}" \
    --output-dir "$runs/vfmtok_scores"
echo "pictures and results.json: $runs/vfmtok_scores"
