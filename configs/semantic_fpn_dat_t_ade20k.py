# Semantic FPN with DAT-T, 80,000 iterations.
_base_ = [
    '_base_/models/semantic_fpn_dat.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/ade20k_80k.py',
    '_base_/runtimes/segmentation.py',
]
model = dict(backbone=dict(arch='dat_t', drop_path_rate=0.4))
