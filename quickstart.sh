#!/usr/bin/env bash
#
# From a fresh machine to a report: makes the environment, cuts training shards and held-out crops from the photographs
# that come with scikit-image and scikit-learn, trains a small tokenizer, reconstructs the held-out crops, evaluates them.
#
#   ./quickstart.sh [--seed N] [--held-out NAME,NAME] [-- OPTIONS OF train.py]
#
# A second call reuses what is there; after an interruption training goes on from its newest checkpoint. The report is
# runs/quickstart/report.html; another seed or other held-out photographs get a run folder of their own. Options after
# `--` are for experiments (as in `-- --set training.total_kimg=1`) and stay with the same run folder.

set -euo pipefail

usage() {
    sed -n '3,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

say() {
    printf '\n== %s\n' "$*"
}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

seed=0
held_out=chelsea,flower
while (($#)); do
    case "$1" in
        --seed | --held-out) [[ $# -ge 2 ]] || fail "$1 needs a value." ;;
    esac
    case "$1" in
        --seed) seed="$2" && shift 2 ;;
        --held-out) held_out="$2" && shift 2 ;;
        -h | --help) usage && exit 0 ;;
        --) shift && break ;;
        *) fail "found '$1', expected --seed N, --held-out NAME,NAME or -- OPTIONS OF train.py." ;;
    esac
done
[[ "$seed" =~ ^[0-9]+$ ]] || fail "--seed: found '$seed', expected a whole number."
[[ "$held_out" =~ ^[a-z_,]+$ ]] || fail "--held-out: found '$held_out', expected names such as coffee,rocket."

cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
trap 'printf "\nstopped; the same command goes on where this one was\n" >&2; exit 130' INT

split=""
[[ "$held_out" == chelsea,flower ]] || split="-${held_out//,/-}"
data_dir="runs/quickstart-data$split"
run_dir="runs/quickstart$split"
[[ "$seed" == 0 ]] || run_dir+="-seed$seed"
images_dir="$run_dir/reconstructions"

say "1/5 environment"
python="$(tools/setup_env.sh | tail -n 1)"
echo "$python"
export HF_HUB_OFFLINE=1 # everything that this run needs is in the environment

say "2/5 photographs"
"$python" tools/quickstart/photographs.py --output-dir "$data_dir" --held-out "$held_out" \
    --stored-size 128

say "3/5 training (log: $run_dir/log.jsonl)"
"$python" -m torch.distributed.run --standalone --nproc_per_node=1 train.py --config configs/quickstart.yaml \
    --set "run.run_dir=$run_dir" --set "run.random_seed=$seed" --set "data.path=$data_dir/shards" "$@"

say "4/5 reconstruction and evaluation of held-out crops"
"$python" tools/reconstruct/reconstruct.py --input-dir "$data_dir/heldout" --output-dir "$images_dir" --vae-pth "$run_dir"
"$python" tools/reconstruct/evaluate.py --ref-dir "$images_dir/inputs" --pred-dir "$images_dir/outputs" \
    --output-json "$run_dir/evaluation.json" --per-image-csv "$run_dir/evaluation.csv"

say "5/5 report"
"$python" tools/quickstart/report.py --run-dir "$run_dir" --images-dir "$images_dir" --photographs "$data_dir/photographs.json"
