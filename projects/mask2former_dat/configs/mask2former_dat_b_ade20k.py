# Mask2Former with DAT-B for ADE20K, 160,000 iterations.
_base_ = '_base_/ade20k.py'

model = dict(
    backbone=dict(arch='dat_b'),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
)
