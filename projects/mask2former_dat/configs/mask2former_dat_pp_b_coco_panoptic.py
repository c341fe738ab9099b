# Mask2Former with DAT-B++ for COCO panoptic, 50 epochs.
_base_ = '_base_/coco_panoptic.py'

model = dict(
    backbone=dict(arch='dat_pp_b'),
    panoptic_head=dict(in_channels=[128, 256, 512, 1024]),
)
