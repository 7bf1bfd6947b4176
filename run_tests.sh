#!/usr/bin/env bash
#
# Sets up the environment, checks format, style and imports, then runs the tests.
#
#   ./run_tests.sh                       what CI runs
#   ./run_tests.sh --slow                also the long forms of the tests
#   ./run_tests.sh tests/data -k order   everything else is passed on to pytest
#
# Stops at the first part that fails, with its exit code.

set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

selection=(-m "not slow")
arguments=()
for argument in "$@"; do
    case "$argument" in
        --slow) selection=() ;;
        *) arguments+=("$argument") ;;
    esac
done

python="$(tools/setup_env.sh --dev | tail -n 1)"

# One thread per process: several processes share the machine, and sums keep one order. Nothing is fetched.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 WANDB_MODE=offline WANDB_SILENT=true

part() {
    printf '== %s\n' "$1"
    shift
    "$@"
}

part "format" "$python" -m ruff format --check .
part "lint" "$python" -m ruff check .
part "imports" "${python%/*}/lint-imports" --no-cache --no-logo
part "tests" "$python" -m pytest ${selection[@]+"${selection[@]}"} ${arguments[@]+"${arguments[@]}"}
