#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#
# A sweep on GPU machines under Slurm, a process for each GPU, from the repository's folder:
#
#   sbatch scripts/slurm.sh --out=FOLDER [options of eval.sweep]
#
# FOLDER is on a file system that all machines see. The processes find each other by what Slurm tells them.
# Without --mesh each GPU decodes its own rows; --mesh=data:2,model:4 splits a model over each machine.
# Should a machine go down, the same line, on any number of them, makes what is missing.
set -eu
srun python -m eval.sweep --coordinator=auto --coordinator-timeout=300 "$@"
