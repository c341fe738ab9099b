#!/usr/bin/env bash
# Evaluates on a Slurm cluster:
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] \
#       tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT \
#       [arguments of test.py]
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT" \
        "[arguments of test.py]" >&2
    echo "environment: GPUS (default 8), GPUS_PER_NODE (default 8, 0 for" \
        "none), CPUS_PER_TASK (default 5), SRUN_ARGS, PYTHON" >&2
    exit 2
fi
partition=$1 job=$2 config=$3 checkpoint=$4
shift 4
exec bash "$(dirname "$0")/slurm_run.sh" "$partition" "$job" test.py \
    "$config" "$checkpoint" "$@"
