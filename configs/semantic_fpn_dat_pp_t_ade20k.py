# Semantic FPN with DAT-T++, 80,000 iterations.
_base_ = 'semantic_fpn_dat_t_ade20k.py'

model = dict(
    backbone=dict(arch='dat_pp_t'),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
