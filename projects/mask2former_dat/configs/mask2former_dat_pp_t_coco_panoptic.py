# Mask2Former with DAT-T++ for COCO panoptic, 50 epochs.
_base_ = '_base_/coco_panoptic.py'

model = dict(
    backbone=dict(arch='dat_pp_t'),
    panoptic_head=dict(in_channels=[64, 128, 256, 512]),
)
