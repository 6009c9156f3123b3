#!/bin/bash
# One run on several machines under SLURM, a process for each GPU:
#
#   sbatch --nodes=2 experiments/cluster/slurm.sh --flagfile=imagenet.cfg \
#     --data_dir=DIR --workdir=DIR
#
# --data_dir may be a folder of each node or one that all see; --workdir must be one that
# all see. Adapt the numbers below to the nodes. One process for all GPUs of a node is
# possible, too: --ntasks-per-node=1.
#SBATCH --job-name=ssil_jax
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
# Two minutes before the end, this script is told; it has the processes save, and puts the
# job back into the queue, from where it goes on. A job that is cancelled stays away.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

# SLURM runs a copy of this file.
here=${SLURM_SUBMIT_DIR:-$PWD}

again=
trap 'again=1; kill -TERM "$srun"' USR1

# run.py learns from the step's variables who its processes are. When one of them dies, the
# others stop by themselves; --wait ends what cannot. srun hands SIGTERM on to all of them.
srun --kill-on-bad-exit=0 --wait=120 "${PYTHON:-python}" "$here/experiments/run.py" "$@" &
srun=$!
while true; do
  wait "$srun"
  code=$?
  kill -0 "$srun" 2> /dev/null || break # else a signal has interrupted the waiting
done

if [[ $again ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
