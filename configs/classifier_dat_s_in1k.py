# DAT-S as classifier, 300 epochs at 224.
_base_ = 'classifier_dat_t_in1k.py'

model = dict(backbone=dict(arch='dat_s', drop_path_rate=0.3))
