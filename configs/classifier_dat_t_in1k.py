# DAT-T as classifier, 300 epochs at 224.
_base_ = [
    '_base_/models/classifier_dat.py',
    '_base_/datasets/imagenet_224.py',
    '_base_/schedules/imagenet_300e.py',
    '_base_/runtimes/classification.py',
]
model = dict(backbone=dict(arch='dat_t', drop_path_rate=0.2))
