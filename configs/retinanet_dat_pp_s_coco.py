# RetinaNet with DAT-S++, 1x schedule.
_base_ = 'retinanet_dat_t_coco.py'

model = dict(backbone=dict(arch='dat_pp_s', drop_path_rate=0.1))
