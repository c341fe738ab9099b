# DAT-B as classifier, 300 epochs at 224. Per 512 pictures the lr is 4e-4, at
# the end 5e-6 and at the start 5e-7.
_base_ = 'classifier_dat_t_in1k.py'

model = dict(
    backbone=dict(arch='dat_b', drop_path_rate=0.5),
    head=dict(in_channels=1024),
)
optim_wrapper = dict(
    optimizer=dict(lr=4e-4 * 1024 / 512), clip_grad=dict(max_norm=1.0)
)
rates = dict(warmup=50, start_factor=0.00125, eta_min_ratio=0.0125)
param_scheduler = [dict(_base_.param_scheduler[0], **rates)]
