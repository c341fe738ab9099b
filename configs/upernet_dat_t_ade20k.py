# UPerNet with DAT-T, 160,000 iterations.
_base_ = [
    '_base_/models/upernet_dat.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/ade20k_160k.py',
    '_base_/runtimes/segmentation.py',
]
model = dict(backbone=dict(arch='dat_t', drop_path_rate=0.3))
