# UPerNet with DAT-S++, 160,000 iterations.
_base_ = 'upernet_dat_t_ade20k.py'

model = dict(backbone=dict(arch='dat_pp_s', drop_path_rate=0.5))
