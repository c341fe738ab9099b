# Semantic FPN with DAT-S++, 80,000 iterations.
_base_ = 'semantic_fpn_dat_t_ade20k.py'

model = dict(backbone=dict(arch='dat_pp_s'))
