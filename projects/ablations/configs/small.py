# A tiny DAT on 64 x 64 pictures of digits: all small runs start from it.
_base_ = [
    '../../../configs/_base_/models/classifier_dat_mini.py',
    '../../../configs/_base_/datasets/digits_classification.py',
    '../../../configs/_base_/runtimes/classification.py',
    'small_schedule.py',
]
small_arch = dict(
    embed_dims=[32, 64, 128, 256], depths=[2] * 4, num_heads=[1, 2, 4, 8]
)
model = dict(
    backbone=dict(arch=dict(small_arch, family='dat'), img_size=64),
    head=dict(in_channels=256),
)
default_hooks = dict(logger=dict(interval=5))
