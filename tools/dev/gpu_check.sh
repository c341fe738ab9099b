#!/usr/bin/env bash
# Tests and times mmdat on a GPU in under 8 minutes.
#
#   bash tools/dev/gpu_check.sh [--out FOLDER] [--limit SECONDS] [PART ...]
#   bash tools/dev/gpu_check.sh --dry       runs the same code on a CPU, tiny
#
# The machine needs Python 3.10 or newer, PyTorch with CUDA, Triton and NumPy.
# With timm, the script also times Swin-T. It needs no network. If mmengine is
# missing, the script installs it and its dependencies from wheels in .gpu/ (or
# in $WHEELS). Download them (0.8 MB) on a machine that has a network:
#
#   echo /.gpu/ >> .git/info/exclude
#   python3 -m pip download --no-deps -d .gpu \
#       onedl-mmengine==0.10.12 addict termcolor yapf platformdirs
#
# Copy the checkout and .gpu to the machine, and run this in the checkout:
#
#   bash tools/dev/gpu_check.sh --out results
#
# It writes results.md (for docs/benchmark.md), results.json and log.txt to
# results/. The exit status is 1 if a check failed.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
wheels=${WHEELS:-.gpu}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Kernels compile once for all parts, and from this source.
export TRITON_CACHE_DIR="$work/triton" TORCHINDUCTOR_CACHE_DIR="$work/inductor"
if ! "$python" -c 'import mmengine' 2> "$work/reason"; then
    if ! compgen -G "$wheels/*.whl" > /dev/null; then
        tail -n 1 "$work/reason" >&2
        echo "gpu_check: mmengine cannot be imported, and there are no wheels" \
            "in $wheels; see the top of tools/dev/gpu_check.sh for how to" \
            "download them." >&2
        exit 2
    fi
    "$python" -m pip install -q --no-index --no-deps --no-compile \
        --no-cache-dir --disable-pip-version-check --target "$work/site" \
        "$wheels"/*.whl
    export PYTHONPATH="$PYTHONPATH:$work/site"
fi
"$python" tools/dev/gpu_check/run.py "$@"
