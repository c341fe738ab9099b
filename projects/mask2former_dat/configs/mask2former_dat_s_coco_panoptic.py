# Mask2Former with DAT-S for COCO panoptic, 50 epochs.
_base_ = '_base_/coco_panoptic.py'

model = dict(
    backbone=dict(arch='dat_s'),
    panoptic_head=dict(in_channels=[96, 192, 384, 768]),
)
