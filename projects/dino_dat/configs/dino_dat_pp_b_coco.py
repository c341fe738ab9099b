# DINO with DAT-B++, 12 epochs.
_base_ = '_base_/dino_dat.py'

model = dict(
    backbone=dict(arch='dat_pp_b', drop_path_rate=0.3),
    neck=dict(in_channels=[256, 512, 1024]),
)
