# Random crop, RandAugment and random erasing are in the file this starts from.
# The recipe also names a colour jitter of 0.4, which timm, that the authors
# trained with, leaves out beside RandAugment.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'

# As the authors read photographs, in training and in tests: by Pillow, and not
# turned as their EXIF data would have it. In tests the aspect ratio is not
# kept.
load = dict(
    type='LoadImageFromFile',
    color_type='color_ignore_orientation',
    imdecode_backend='pillow',
)
train_pipeline = [load, *_base_.train_pipeline[1:]]
test_pipeline = [
    load,
    dict(
        type='Resize',
        scale=(256, 256),
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=128, dataset=dict(pipeline=train_pipeline)
)  # 8 GPUs x 128 images = 1024
val_dataloader = dict(batch_size=128, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
