#!/bin/bash
# Score a pool on several nodes of a Slurm cluster: one process per device, all with one shared output folder.
#
#   sbatch slurm_score.sh
#
# The processes share the chunks through the folder alone, so no port and no rendezvous are needed: srun starts them, and
# each takes the next free chunk. After a time limit, requeue or submit again with any number of nodes to resume.
# While it runs: hf-select status $OUTPUT
#
#SBATCH --job-name=hf-select
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=%x-%j.log

set -euo pipefail
OUTPUT=${OUTPUT:-$SLURM_SUBMIT_DIR/scores}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}  # download model and data once on the login node: hf download ...
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# Each process knows its rank and its device from Slurm.
srun hf-select score --scorer rds --model Qwen/Qwen2.5-1.5B --dataset allenai/tulu-v2-sft-mixture \
    --queries math=math.jsonl --output-dir "$OUTPUT"

# The same with accelerate, one launcher a node:
#   srun --ntasks-per-node=1 bash -c 'accelerate launch --multi_gpu --num_machines $SLURM_NNODES \
#       --num_processes $((SLURM_NNODES * 8)) --machine_rank $SLURM_NODEID --main_process_ip $HEAD --main_process_port 29500 \
#       -m hf_select.cli.main score ...'
