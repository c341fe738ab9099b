# RetinaNet with DAT-S, 3x schedule.
_base_ = 'retinanet_dat_t_3x_coco.py'

model = dict(backbone=dict(arch='dat_s', drop_path_rate=0.5))
