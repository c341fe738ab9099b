# RTMDet with DAT-B++, 100 epochs.
_base_ = 'rtmdet_dat_pp_t_coco.py'

model = dict(
    backbone=dict(arch='dat_pp_b', drop_path_rate=0.3, with_cp=True),
    neck=dict(in_channels=[256, 512, 1024]),
)
