_base_ = [
    'mmdet::_base_/datasets/coco_instance.py',
    'detr_augmentation.py',
]

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    *_base_.augmentation,
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    batch_size=2, dataset=dict(pipeline=train_pipeline)
)  # 8 GPUs x 2 images = 16
