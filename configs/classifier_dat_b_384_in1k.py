# DAT-B as classifier, fine-tuned at 384. The lowest lr is 1e-7 per 512.
_base_ = [
    '_base_/models/classifier_dat.py',
    '_base_/datasets/imagenet_384_crop.py',
    '_base_/schedules/imagenet_30e_384.py',
    '_base_/runtimes/classification.py',
]
model = dict(
    backbone=dict(arch='dat_b_384', drop_path_rate=0.5),
    head=dict(in_channels=1024),
)
optim_wrapper = dict(optimizer=dict(lr=2e-6 * 256 / 512))
param_scheduler = [dict(_base_.param_scheduler[0], eta_min_ratio=0.05)]
load_from = 'dat_base_in1k_224.pth'
