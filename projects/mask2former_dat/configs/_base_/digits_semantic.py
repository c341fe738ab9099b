# Semantic segmentation of the digits, see digits.py.
_base_ = ['ade20k.py', '../../../../configs/_base_/backbones/dat_mini.py']

size = (128, 128)
classes = 11
# Narrow layers: those of the pixel decoder take most of the time on a CPU.
width, heads = 128, 4
feed = dict(embed_dims=width, feedforward_channels=256)
attention = dict(embed_dims=width, num_heads=heads)
position = dict(num_feats=width // 2)
model = dict(
    data_preprocessor=dict(size=size),
    backbone=dict(arch={{_base_.mini_arch}}, drop_path_rate=0.0),
    decode_head=dict(
        in_channels=[32, 64, 96, 128],
        feat_channels=width,
        out_channels=width,
        num_classes=classes,
        num_queries=12,
        positional_encoding=position,
        pixel_decoder=dict(
            positional_encoding=position,
            encoder=dict(
                num_layers=1,
                layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=feed),
            ),
        ),
        transformer_decoder=dict(
            num_layers=3,
            layer_cfg=dict(
                self_attn_cfg=attention,
                cross_attn_cfg=attention,
                ffn_cfg=feed,
            ),
        ),
        loss_cls=dict(class_weight=[1.0] * classes + [0.1]),
        train_cfg=dict(num_points=512),
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

iterations = 1600
train_cfg = dict(max_iters=iterations, val_interval=iterations)
optim_wrapper = dict(
    optimizer=dict(lr=3e-4), paramwise_cfg=dict(layer_decay_rate=0.8)
)
param_scheduler = [
    dict(type='PolyLR', power=0.9, by_epoch=False, end=iterations)
]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(max_keep_ckpts=1, interval=iterations),
)
randomness = dict(seed=0)
