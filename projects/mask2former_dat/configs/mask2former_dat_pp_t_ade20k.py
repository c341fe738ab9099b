# Mask2Former with DAT-T++ for ADE20K, 160,000 iterations.
_base_ = '_base_/ade20k.py'

model = dict(
    backbone=dict(arch='dat_pp_t'),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
)
