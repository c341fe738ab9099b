# UPerNet with a tiny DAT++ on the digits data set.
_base_ = [
    '_base_/models/upernet_dat_mini.py',
    '_base_/datasets/digits_semantic.py',
    '_base_/runtimes/segmentation.py',
    '_base_/schedules/digits_iterations.py',
]
default_hooks = dict(checkpoint=dict(interval=500, max_keep_ckpts=1))
randomness = dict(seed=0)
