# RetinaNet with DAT-T++, 1x schedule.
_base_ = 'retinanet_dat_t_coco.py'

model = dict(
    backbone=dict(arch='dat_pp_t'),
    neck=dict(in_channels=[128, 256, 512]),
)
