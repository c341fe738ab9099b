# A tiny DAT on 96 x 96 pictures of digits: all small runs start from it. The
# windows are 1/32 of the picture, as the paper's 7 are of its 224.
_base_ = [
    '../../../configs/_base_/models/classifier_dat_mini.py',
    'small_data.py',
    '../../../configs/_base_/runtimes/classification.py',
    'small_schedule.py',
]
dims = dict(embed_dims=[16, 32, 64, 128], num_heads=[1, 2, 4, 8])
arch = dict(dims, family='dat', depths=[1, 1, 2, 2])
backbone = dict(arch=arch, img_size=96, window_size=3)
model = dict(backbone=backbone, head=dict(in_channels=128))
default_hooks = dict(logger=dict(interval=50))
