#!/usr/bin/env bash
# Shared by dist_train.sh and dist_test.sh: PROCESSES SCRIPT [arguments].
set -euo pipefail
processes=$1 script=$2
shift 2
tools=$(cd "$(dirname "$0")" && pwd)
nodes=${NNODES:-1}
source "$tools/check_number.sh"
whole PROCESSES "$processes" 1
whole NNODES "${nodes%%:*}" 1  # torchrun takes a range as well
if [ "$nodes" != 1 ]; then
    whole NODE_RANK "${NODE_RANK:-0}" 0
fi
whole PORT "${PORT:-29500}" 1 65535
whole MAX_RESTARTS "${MAX_RESTARTS:-0}" 0
if [ -z "${OMP_NUM_THREADS:-}" ] && ! nvidia-smi -L >/dev/null 2>&1; then
    share=$(($(nproc) / processes))
    export OMP_NUM_THREADS=$((share > 0 ? share : 1))
fi
source "$tools/find_python.sh"
export PYTHONPATH="$(dirname "$tools")${PYTHONPATH:+:$PYTHONPATH}"
where=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500}
if [ "$nodes" = 1 ] && [ -z "${PORT:-}" ]; then
    # Any free port, so that two runs on one machine do not collide.
    meet=(--standalone)
elif [ "${MAX_RESTARTS:-0}" != 0 ]; then
    # The one meeting place where processes meet again after a failure.
    meet=(--rdzv_backend c10d --rdzv_id "${RUN_ID:-mmdat}"
        --rdzv_endpoint "$where:$port")
else
    meet=(--node_rank "${NODE_RANK:-0}" --master_addr "$where"
        --master_port "$port")
fi
if [ "${MAX_RESTARTS:-0}" != 0 ]; then
    meet+=(--max_restarts "$MAX_RESTARTS")
    # With a shared store, a new torchrun that takes the place of a dead one
    # waits for an address that the others announced only at the start.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
fi
exec "$PYTHON" "$tools/dist_run.py" -m torch.distributed.run --nnodes "$nodes" \
    --nproc_per_node "$processes" "${meet[@]}" \
    "$tools/$script" "$@" --launcher pytorch
