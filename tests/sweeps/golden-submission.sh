#!/bin/bash

# Parameters
#SBATCH --array=0-2%2
#SBATCH --cpus-per-task=2
#SBATCH --gres=gpu:2
#SBATCH --job-name=x.20260101-120000
#SBATCH --mail-type=NONE
#SBATCH --mem=512M
#SBATCH --nice=5
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output=/home/me/results/x/.launch/20260101-120000/submitit/%A_%a_0_log.out
#SBATCH --partition=main
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=150

# setup
export TMPDIR="/home/me/tmp"
mkdir -p "$TMPDIR"
module() { true; }
module load cuda
export PYTHONSAFEPATH=1
export PYTHONPATH=/home/me/results/x/.launch/code/0123456789ab${PYTHONPATH:+:$PYTHONPATH}

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /home/me/results/x/.launch/20260101-120000/submitit/%A_%a_%t_log.out --export=ALL --cpus-per-task=2 /home/me/.venv/bin/python -u -m submitit.core._submit /home/me/results/x/.launch/20260101-120000/submitit
