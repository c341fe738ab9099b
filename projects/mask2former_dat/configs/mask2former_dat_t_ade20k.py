# Mask2Former with DAT-T for ADE20K, 160,000 iterations.
_base_ = '_base_/ade20k.py'

model = dict(
    backbone=dict(arch='dat_t'),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
)
