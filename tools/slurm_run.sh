#!/usr/bin/env bash
# Shared by slurm_train.sh and slurm_test.sh: PARTITION JOB SCRIPT [arguments].
# GPUS_PER_NODE=0 runs without GPUs.
set -euo pipefail
partition=$1 job=$2 script=$3
shift 3
tools=$(cd "$(dirname "$0")" && pwd)
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
source "$tools/check_number.sh"
whole GPUS "$gpus" 1
whole GPUS_PER_NODE "$per_node" 0
whole CPUS_PER_TASK "${CPUS_PER_TASK:-5}" 1
if ! command -v srun >/dev/null; then
    echo "srun was not found, so this is no machine of a Slurm cluster;" \
        "run tools/dist_train.sh or tools/dist_test.sh instead." >&2
    exit 2
fi
source "$tools/find_python.sh"
export PYTHONPATH="$(dirname "$tools")${PYTHONPATH:+:$PYTHONPATH}"
if [ "$per_node" -gt 0 ]; then
    per_node=$((gpus < per_node ? gpus : per_node))
    resources=(--gres "gpu:$per_node" --ntasks-per-node "$per_node")
else
    resources=()
fi
exec srun -p "$partition" --job-name "$job" "${resources[@]}" \
    --ntasks "$gpus" --cpus-per-task "${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "$PYTHON" -u "$tools/$script" "$@" --launcher slurm
