#!/bin/bash
#SBATCH --job-name=lscl-table1
#SBATCH --array=0-56
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=24:00:00
# The main table of the paper profile, one run per task: 15 systems with 3 seeds.
#   sbatch examples/slurm/table1.sh --dataset cifar100
#   sbatch examples/slurm/table1.sh --dataset imagenet_r
# Submit again what a time limit cut off: finished runs are skipped, stopped ones go on. Set LSCL_ROOT (results) and LSCL_CACHE (images,
# activations) to folders that all nodes see. Without SLURM it prints the share of one task:
#   SLURM_ARRAY_TASK_ID=3 SLURM_ARRAY_TASK_COUNT=45 bash examples/slurm/table1.sh --list
set -euo pipefail
exec ${LSCL:-lscl} sweep table1 --profile paper --task-index "$SLURM_ARRAY_TASK_ID" --task-count "$SLURM_ARRAY_TASK_COUNT" "$@"
