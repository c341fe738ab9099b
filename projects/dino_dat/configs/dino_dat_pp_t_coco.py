# DINO with DAT-T++, 12 epochs.
_base_ = '_base_/dino_dat.py'

model = dict(
    backbone=dict(arch='dat_pp_t', drop_path_rate=0.1),
    neck=dict(in_channels=[128, 256, 512]),
)
