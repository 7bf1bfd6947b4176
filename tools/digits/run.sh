#!/usr/bin/env bash
#
# A whole diffusion experiment in small, on one CPU core and without a network: the digit scans of scikit-learn, a
# tokenizer, LightningDiT and REG on its latents, 500 samples of each without and with guidance, and a classifier that
# judges them.
#
#   tools/digits/run.sh
#
# Everything goes to runs/digits, the scores to runs/digits/scores/results.json. Start it again after an interruption:
# what is finished is kept. docs/diffusion.md says what to expect.

set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
source tools/digits/common.sh
tokenizer="$runs/tokenizer"

say "1/6 digit scans"
"$python" tools/digits/prepare.py --output-dir "$runs/data"

say "2/6 tokenizer"
"$python" train.py --config configs/digits_tokenizer.yaml --set run.device=cpu
"$python" tools/reconstruct/reconstruct.py --input-dir "$runs/data/heldout" --output-dir "$runs/reconstructions" \
    --vae-pth "$tokenizer" --skip-existing "${on_cpu[@]}"

say "3/6 latents"
data=(--data-path "$runs/data/training" --resolution 32 --vae-pth "$tokenizer" "${on_cpu[@]}")
"$python" tools/preprocess_for_lightningdit/prefetch.py "${data[@]}" --output-dir "$runs/lightningdit_latents"
"$python" tools/preprocess_for_reg/prefetch.py "${data[@]}" --output-dir "$runs/reg_latents"
"$python" tools/preprocess_for_reg/prefetch_features.py --config configs/digits_reg.yaml \
    --output-dir "$runs/reg_features" "${on_cpu[@]}"

say "4/6 LightningDiT and REG"
for model in lightningdit reg; do
    "$python" train.py --config "configs/digits_$model.yaml" --set run.device=cpu
done

say "5/6 samples"
sets=()
for model in lightningdit reg; do
    for guidance in without with; do
        name="${model}_${guidance}_guidance"
        scale=()
        [[ "$guidance" == with ]] || scale=(--set sample.cfg_scale=1.0)
        "$python" "tools/preprocess_for_$model/sample.py" --checkpoint "$runs/$model" --num-samples 500 \
            --labels balanced --batch-size-per-gpu 100 --output-dir "$runs/samples/$name" "${on_cpu[@]}" "${scale[@]}"
        "$python" tools/decode/decode_latents_to_images.py --input-dir "$runs/samples/$name" \
            --output-dir "$runs/decoded/$name" --vae-pth "$tokenizer" "${on_cpu[@]}"
        sets+=(--samples "$name=$runs/decoded/$name")
    done
done

say "6/6 scores"
"$python" tools/digits/score.py --reconstructions "$runs/reconstructions/outputs" "${sets[@]}" \
    --output-dir "$runs/scores"
echo "pictures and results.json: $runs/scores"
