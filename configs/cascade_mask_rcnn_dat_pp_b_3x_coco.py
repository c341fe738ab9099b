# Cascade Mask R-CNN with DAT-B++, 3x schedule.
_base_ = 'cascade_mask_rcnn_dat_t_3x_coco.py'

model = dict(
    backbone=dict(arch='dat_pp_b', drop_path_rate=0.8),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
