_base_ = '../backbones/dat_mini.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='DAT',
        arch={{_base_.mini_arch}},
        out_indices=(3,),
        init_cfg=dict(),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=128,
        loss=dict(type='CrossEntropyLoss'),
    ),
)
