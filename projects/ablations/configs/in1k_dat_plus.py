# DAT+ in the recipe of DAT-T, as in the authors' dat_p.yaml.
_base_ = '../../../configs/classifier_dat_t_in1k.py'
model = dict(backbone=dict(arch='dat_p_t'), head=dict(in_channels=512))
