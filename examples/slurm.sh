#!/usr/bin/env bash
#
# Train on SLURM, and go on by itself after a preemption or at the time limit.
#
#   sbatch examples/slurm.sh --config my_run.yaml [--set section.key=value ...]
#
# Two minutes before the limit SLURM sends USR1 to every process of the training (TERM at a preemption). All ranks then
# write one checkpoint and exit with 143; the job is put back into the queue, and the same command resumes the run.
# Any other exit code ends the job. Change the lines below to your cluster; start it from the root of the checkout.

#SBATCH --job-name=vfm-vae
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log

set -uo pipefail

readonly STOPPED_EXIT_CODE=143

MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
MASTER_PORT="$((20000 + SLURM_JOB_ID % 20000))"
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS=1

# One task per GPU. SLURM is the launcher here, not torchrun, so that its signals reach the training itself.
srun --kill-on-bad-exit=1 bash -c '
    export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID"
    export WORLD_SIZE="$SLURM_NTASKS" LOCAL_WORLD_SIZE="$SLURM_NTASKS_PER_NODE"
    exec "${PYTHON:-.venv/bin/python}" train.py "$@"' train.py "$@" &
step=$!

# A signal to this script interrupts `wait`, not the training, which SLURM tells by itself.
trap : USR1 TERM
while :; do
    wait "$step"
    code=$?
    kill -0 "$step" 2>/dev/null || break
done

if [[ $code -eq $STOPPED_EXIT_CODE ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
