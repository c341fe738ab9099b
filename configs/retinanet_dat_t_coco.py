# RetinaNet with DAT-T, 1x schedule.
_base_ = [
    '_base_/models/retinanet_dat.py',
    '_base_/datasets/coco_detection.py',
    '_base_/schedules/coco_1x.py',
    '_base_/runtimes/detection.py',
]
model = dict(backbone=dict(arch='dat_t'))
optim_wrapper = dict(optimizer=dict(lr=5e-5))
