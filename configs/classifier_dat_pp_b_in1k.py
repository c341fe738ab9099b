# DAT-B++ as classifier, 300 epochs at 224.
_base_ = 'classifier_dat_t_in1k.py'

model = dict(
    backbone=dict(arch='dat_pp_b', drop_path_rate=0.7),
    head=dict(in_channels=1024),
)
