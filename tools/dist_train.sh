#!/usr/bin/env bash
# Trains with several processes on this machine, one per GPU:
#   tools/dist_train.sh CONFIG PROCESSES [arguments of train.py]
# On several machines run it on each, with NNODES, NODE_RANK, MASTER_ADDR and
# PORT set. Without a GPU the processes share the CPU's cores. With
# MAX_RESTARTS=3 they start again, up to three times, after one has died; give
# --resume too, so that they go on.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG PROCESSES [arguments of train.py]" >&2
    echo "environment: NNODES, NODE_RANK, MASTER_ADDR, PORT, PYTHON," \
        "MAX_RESTARTS, RUN_ID" >&2
    exit 2
fi
config=$1 processes=$2
shift 2
exec bash "$(dirname "$0")/dist_run.sh" "$processes" train.py "$config" "$@"
