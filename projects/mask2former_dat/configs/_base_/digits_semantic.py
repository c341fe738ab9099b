# Semantic segmentation of the digits, see digits.py.
_base_ = ['ade20k.py', '../../../../configs/_base_/backbones/dat_mini.py']

size = (192, 192)
classes = 11
feed = dict(layer_cfg=dict(ffn_cfg=dict(feedforward_channels=512)))
model = dict(
    data_preprocessor=dict(size=size),
    backbone=dict(arch={{_base_.mini_arch}}, drop_path_rate=0.0),
    decode_head=dict(
        in_channels=[32, 64, 96, 128],
        num_classes=classes,
        num_queries=30,
        pixel_decoder=dict(encoder=dict(num_layers=2, **feed)),
        transformer_decoder=dict(num_layers=3, **feed),
        loss_cls=dict(class_weight=[1.0] * classes + [0.1]),
        train_cfg=dict(num_points=1024),
    ),
)

data_root = 'data/digits/ade/'
names = ('photograph', *'0123456789')
metainfo = dict(
    classes=names, palette=[[23 * i, 255 - 23 * i, 99] for i in range(classes)]
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(
        type='RandomResize',
        scale=size,
        ratio_range=(0.8, 1.25),
        keep_ratio=True,
    ),
    dict(type='RandomCrop', crop_size=size, cat_max_ratio=0.95),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
data = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=metainfo,
    reduce_zero_label=True,
)
loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
train_dataloader = dict(
    **loader, dataset=dict(**data, pipeline=train_pipeline)
)
val_dataloader = dict(**loader, dataset=dict(**data, pipeline=test_pipeline))
test_dataloader = val_dataloader

iterations = 2000
train_cfg = dict(max_iters=iterations, val_interval=iterations)
optim_wrapper = dict(
    optimizer=dict(lr=4e-4), paramwise_cfg=dict(layer_decay_rate=1.0)
)
param_scheduler = [
    dict(type='PolyLR', power=0.9, by_epoch=False, end=iterations)
]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(max_keep_ckpts=1, interval=iterations),
)
randomness = dict(seed=0)
