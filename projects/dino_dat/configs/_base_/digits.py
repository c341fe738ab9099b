# The same, but narrower, with fewer layers and a tiny DAT++, for the digits.
_base_ = [
    'dino_dat.py',
    '../../../../configs/_base_/backbones/dat_mini.py',
]

# Narrow layers: the plain PyTorch form of the deformable attention of the
# encoder takes most of the time on a CPU.
width, heads = 128, 4
feed = dict(embed_dims=width, feedforward_channels=256)
deformable = dict(embed_dims=width, num_heads=heads)
model = dict(
    num_queries=40,
    backbone=dict(arch={{_base_.mini_arch}}),
    neck=dict(in_channels=[64, 96, 128], out_channels=width),
    positional_encoding=dict(num_feats=width // 2),
    encoder=dict(
        num_layers=1,
        layer_cfg=dict(self_attn_cfg=deformable, ffn_cfg=feed),
    ),
    decoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=deformable, cross_attn_cfg=deformable, ffn_cfg=feed
        ),
    ),
    bbox_head=dict(num_classes=10, embed_dims=width),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=40)),
    test_cfg=dict(max_per_img=20),
)

data_root = 'data/digits/coco/'
metainfo = dict(classes=tuple('0123456789'))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=(192, 192), ratio_range=(0.8, 1.25)),
    dict(type='RandomCrop', crop_size=(192, 192)),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(192, 192), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=(
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
        ),
    ),
]
loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
train_dataloader = dict(
    **loader,
    dataset=dict(
        data_root=data_root, metainfo=metainfo, pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    **loader,
    dataset=dict(
        data_root=data_root, metainfo=metainfo, pipeline=test_pipeline
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

epochs = 3
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
optim_wrapper = dict(
    optimizer=dict(lr=4e-4), paramwise_cfg=dict(layer_decay_rate=1.0)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=epochs,
        T_max=epochs,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1)
)
randomness = dict(seed=0)
