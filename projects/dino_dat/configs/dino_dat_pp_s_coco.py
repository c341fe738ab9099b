# DINO with DAT-S++, 12 epochs.
_base_ = '_base_/dino_dat.py'

model = dict(
    backbone=dict(arch='dat_pp_s', drop_path_rate=0.2),
    neck=dict(in_channels=[192, 384, 768]),
)
