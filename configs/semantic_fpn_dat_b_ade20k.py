# Semantic FPN with DAT-B, 80,000 iterations.
_base_ = 'semantic_fpn_dat_t_ade20k.py'

model = dict(
    backbone=dict(arch='dat_b', drop_path_rate=0.7),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
