# Mask R-CNN with DAT-S++, 1x schedule.
_base_ = 'mask_rcnn_dat_pp_t_coco.py'

model = dict(
    backbone=dict(arch='dat_pp_s', drop_path_rate=0.1),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
