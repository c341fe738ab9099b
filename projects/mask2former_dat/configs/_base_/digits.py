# The same, but narrower, with fewer layers and a tiny DAT++, for the digits.
_base_ = [
    'coco_instance.py',
    '../../../../configs/_base_/backbones/dat_mini.py',
]

size = (128, 128)
classes = 10
# Narrow layers: those of the pixel decoder take most of the time on a CPU.
width, heads = 128, 4
feed = dict(embed_dims=width, feedforward_channels=256)
attention = dict(embed_dims=width, num_heads=heads)
position = dict(num_feats=width // 2)
model = dict(
    data_preprocessor=dict(
        batch_augments=[
            dict(
                type='BatchFixedSizePad',
                size=size,
                img_pad_value=0,
                pad_mask=True,
                mask_pad_value=0,
                pad_seg=False,
            )
        ]
    ),
    backbone=dict(arch={{_base_.mini_arch}}, drop_path_rate=0.0),
    panoptic_head=dict(
        in_channels=[32, 64, 96, 128],
        feat_channels=width,
        out_channels=width,
        num_queries=10,
        num_things_classes=classes,
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
    ),
    panoptic_fusion_head=dict(num_things_classes=classes),
    train_cfg=dict(num_points=512),
    test_cfg=dict(max_per_image=10),
)

data_root = 'data/digits/coco/'
metainfo = dict(classes=tuple('0123456789'))
train_pipeline = [
    dict(type='LoadImageFromFile', to_float32=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=size, ratio_range=(0.8, 1.25)),
    dict(type='RandomCrop', crop_size=size, recompute_bbox=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-5, 1e-5), by_mask=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', to_float32=True),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
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

iterations = 1200
train_cfg = dict(
    max_iters=iterations, val_interval=iterations, dynamic_intervals=None
)
optim_wrapper = dict(
    optimizer=dict(lr=3e-4), paramwise_cfg=dict(layer_decay_rate=0.8)
)
param_scheduler = dict(
    _delete_=True, type='PolyLR', power=0.9, by_epoch=False, end=iterations
)
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(max_keep_ckpts=1, interval=iterations),
)
randomness = dict(seed=0)
