# shellcheck shell=bash disable=SC2034
#
# What the experiments with digits have in common; sourced by run.sh and run_vfmtok.sh, from the root of the checkout.

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
trap 'printf "\nstopped; the same command goes on where this one was\n" >&2; exit 130' INT

python="${PYTHON:-python}"
runs=runs/digits
on_cpu=(--device cpu)

say() {
    printf '\n== %s\n' "$*"
}
