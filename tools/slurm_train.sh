#!/usr/bin/env bash
# Trains on a Slurm cluster:
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] \
#       tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of train.py]
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG [arguments of train.py]" >&2
    echo "environment: GPUS (default 8), GPUS_PER_NODE (default 8, 0 for" \
        "none), CPUS_PER_TASK (default 5), SRUN_ARGS, PYTHON" >&2
    exit 2
fi
partition=$1 job=$2 config=$3
shift 3
exec bash "$(dirname "$0")/slurm_run.sh" "$partition" "$job" train.py \
    "$config" "$@"
