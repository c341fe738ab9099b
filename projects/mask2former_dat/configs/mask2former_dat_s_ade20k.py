# Mask2Former with DAT-S for ADE20K, 160,000 iterations.
_base_ = '_base_/ade20k.py'

model = dict(
    backbone=dict(arch='dat_s'),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
)
