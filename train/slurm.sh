#!/usr/bin/env bash
# One stage on any number of nodes:
#   sbatch --nodes 2 --gpus-per-node 8 train/slurm.sh pretrain --recipe base --manifest ... --out ...
# A job that is stopped before its time limit saves a checkpoint; submitting the same line again continues it.
#SBATCH --ntasks-per-node 1
#SBATCH --cpus-per-gpu 12
#SBATCH --signal TERM@120
#SBATCH --requeue
set -euo pipefail
stage=$1
shift
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID" "train/$stage.py" "$@"
