# Digits of which every run sees thousands, see the README. No random crop: it
# would cut digits away.
_base_ = '../../../configs/_base_/datasets/digits_classification.py'
data_root = 'data/digits_ablations/imagenet/'
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), interpolation='bicubic'),
    dict(type='PackInputs'),
]
data = dict(data_root=data_root, pipeline=pipeline)
train_dataloader = dict(dataset=data)
val_dataloader = dict(batch_size=100, dataset=data)
test_dataloader = val_dataloader
