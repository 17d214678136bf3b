#!/usr/bin/env bash
# One stage on any number of nodes:
#   sbatch --nodes 2 --gpus-per-node 8 train/slurm.sh pretrain --recipe base --manifest ... --out ...
# Before its time limit, and when it is pre-empted, the job saves a checkpoint and is queued again, where it goes on. A process that
# dies is started again with all others, three times. Needs torch 2.13 or later.
#SBATCH --ntasks-per-node 1
#SBATCH --cpus-per-gpu 12
#SBATCH --signal B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode append
set -uo pipefail
stage=$1
shift
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Each start of the group gets a store of its own, on all nodes: see store_of_attempt in avfmae/training/dist.py.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" --max-restarts 3 \
  --shutdown-timeout 150 --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
  "train/$stage.py" "$@" &
step=$!

stopped=
# srun hands the signal on to torchrun, and that to the processes, which save and end.
trap 'stopped=1; kill -TERM "$step"' USR1 TERM
wait "$step"
status=$?
if [ "$stopped" ]; then
  wait "$step" # a signal ends the first wait
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
