#!/usr/bin/env bash
# Trains the model in demo/, measures it, and makes the pictures of the
# documentation from it. The last lines it prints go to demo/README.md, and what
# the captions in docs/visualization.md say is to be compared with the pictures.
# About 40 minutes on one free core; it goes on where it was interrupted.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHON=${PYTHON:-python} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
work=${WORK_DIR:-work_dirs/demo_model}
config=configs/mask_rcnn_dat_digits.py
model=demo/mask_rcnn_dat_digits.safetensors
images=docs/images

"$PYTHON" tools/make_digits.py --out data/digits
# The recipe of the config for six epochs in place of five, in one process.
"$PYTHON" tools/train.py "$config" --work-dir "$work" --resume auto \
    --cfg-options train_cfg.max_epochs=6 train_cfg.val_interval=6 \
    param_scheduler.1.end=6 param_scheduler.1.T_max=6 \
    train_dataloader.batch_size=8 default_hooks.checkpoint.by_epoch=False \
    default_hooks.checkpoint.interval=125 \
    default_hooks.checkpoint.max_keep_ckpts=-1
"$PYTHON" tools/dev/publish_demo_model.py "$(cat "$work/last_checkpoint")"

draw=tools/visualization
"$PYTHON" $draw/vis_points.py demo/pictures/coins.jpg "$config" $model \
    --grid --dpi 300 --out $images/points.webp
"$PYTHON" $draw/vis_points.py demo/pictures/cat.jpg "$config" $model \
    --grid --query 60 150 --dpi 300 --out $images/attention.webp
"$PYTHON" $draw/paper_figure.py --dpi 250 --out $images/figure.webp
"$PYTHON" $draw/explore.py demo/pictures/coins.jpg "$config" init $model \
    --out $images/explorer.html

# What the card says.
"$PYTHON" tools/test.py "$config" $model --work-dir "$work/test"
"$PYTHON" tools/analysis_tools/points_on_objects.py
"$PYTHON" tools/analysis_tools/points_on_objects.py \
    "$config" $model --count 200
