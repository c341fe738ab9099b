# Cascade Mask R-CNN with DAT-T, 1x schedule.
_base_ = [
    '_base_/models/cascade_mask_rcnn_dat.py',
    '_base_/datasets/coco_instance.py',
    '_base_/schedules/coco_1x.py',
    '_base_/runtimes/instance_segmentation.py',
]
model = dict(backbone=dict(arch='dat_t'))
