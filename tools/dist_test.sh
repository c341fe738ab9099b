#!/usr/bin/env bash
# Evaluates with several processes on this machine, one per GPU:
#   tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of test.py]
# On several machines see dist_train.sh.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT PROCESSES [arguments of test.py]" >&2
    echo "environment: NNODES, NODE_RANK, MASTER_ADDR, PORT, PYTHON" >&2
    exit 2
fi
config=$1 checkpoint=$2 processes=$3
shift 3
exec bash "$(dirname "$0")/dist_run.sh" "$processes" test.py \
    "$config" "$checkpoint" "$@"
