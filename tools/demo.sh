#!/usr/bin/env bash
# The main job at small scale: make the digits data set, train Mask R-CNN on
# it with two processes, evaluate, and draw predictions beside the truth.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/find_python.sh
work=${WORK_DIR:-work_dirs/mask_rcnn_dat_digits}
config=configs/mask_rcnn_dat_digits.py

# The GPU, if there is one and mmcv's operators were compiled for it.
processes=2
devices=$("$PYTHON" - <<'END'
import torch
from mmcv.ops import get_compiling_cuda_version
compiled = get_compiling_cuda_version() != 'not available'
print(torch.cuda.device_count() if compiled else 0)
END
)
if [ "$devices" = 0 ]; then
    export CUDA_VISIBLE_DEVICES=
elif [ "$devices" = 1 ]; then
    processes=1
fi

"$PYTHON" tools/make_digits.py --out data/digits
# Goes on from the last checkpoint if an earlier demo was interrupted.
tools/dist_train.sh "$config" "$processes" --work-dir "$work" --resume auto
checkpoint=$(cat "$work/last_checkpoint")
tools/dist_test.sh "$config" "$checkpoint" "$processes" \
    --work-dir "$work/test" \
    --cfg-options test_evaluator.outfile_prefix="$work/predictions"
"$PYTHON" tools/visualization/draw_detections.py "$config" \
    "$work/predictions.segm.json" "$work/predictions.png"
"$PYTHON" - "$work/test" <<'END'
import json
import sys
from pathlib import Path
newest = max(Path(sys.argv[1]).glob('*/*.json'))
metrics = json.loads(newest.read_text().splitlines()[-1])
for name, key in (('box', 'bbox'), ('mask', 'segm')):
    ap, ap50 = metrics[f'coco/{key}_mAP'], metrics[f'coco/{key}_mAP_50']
    print(f'{name} AP {ap:.3f}, {name} AP50 {ap50:.3f}')
END
