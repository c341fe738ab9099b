# Mask R-CNN with DAT-S, 1x schedule.
_base_ = 'mask_rcnn_dat_t_coco.py'

model = dict(backbone=dict(arch='dat_s', drop_path_rate=0.1))
