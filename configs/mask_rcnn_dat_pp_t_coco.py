# Mask R-CNN with DAT-T++, 1x schedule.
_base_ = 'mask_rcnn_dat_t_coco.py'

model = dict(
    backbone=dict(arch='dat_pp_t'),
    neck=dict(in_channels=[64, 128, 256, 512], add_extra_convs='on_input'),
)
