_base_ = 'imagenet_384.py'

# The authors evaluate DAT at 384 with the margin they have at 224.
test_pipeline = [
    _base_.load,
    dict(
        type='Resize',
        scale=(438, 438),  # 384 * 256 / 224
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='CenterCrop', crop_size=384),
    dict(type='PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
