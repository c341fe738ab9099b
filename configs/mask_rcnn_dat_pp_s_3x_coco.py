# Mask R-CNN with DAT-S++, 3x schedule.
_base_ = 'mask_rcnn_dat_pp_t_3x_coco.py'

model = dict(
    backbone=dict(arch='dat_pp_s', drop_path_rate=0.5),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
