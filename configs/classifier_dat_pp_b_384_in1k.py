# DAT-B++ as classifier, fine-tuned at 384.
_base_ = [
    '_base_/models/classifier_dat.py',
    '_base_/datasets/imagenet_384.py',
    '_base_/schedules/imagenet_30e_384.py',
    '_base_/runtimes/classification.py',
]
model = dict(
    backbone=dict(arch='dat_pp_b_384', drop_path_rate=0.6),
    head=dict(in_channels=1024),
)
load_from = 'dat_pp_base_in1k_224.pth'
