_base_ = 'detection.py'

default_hooks = dict(
    checkpoint=dict(save_best=['coco/bbox_mAP', 'coco/segm_mAP'])
)
