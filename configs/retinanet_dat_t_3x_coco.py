# RetinaNet with DAT-T, 3x schedule.
_base_ = [
    '_base_/models/retinanet_dat.py',
    '_base_/datasets/coco_detection.py',
    '_base_/schedules/coco_3x.py',
    '_base_/runtimes/detection.py',
]
model = dict(backbone=dict(arch='dat_t', drop_path_rate=0.2))
optim_wrapper = dict(optimizer=dict(lr=5e-5))
