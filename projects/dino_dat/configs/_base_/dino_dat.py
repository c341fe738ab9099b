# The host's DINO with four scales and 12 epochs. What differs is said in the
# README beside it.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

custom_imports = dict(imports=['mmdat'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdat.DAT',
        # Strides 8 to 32; the neck makes the fourth scale. A norm of stride 4
        # would get no gradient, which stops training in several processes.
        out_indices=(1, 2, 3),
        init_cfg=dict(),
    ),
)
optim_wrapper = dict(
    constructor='mmdat.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        layer_decay_rate=0.9,
        norm_decay_mult=0.0,
        custom_keys={
            'relative_position_bias_table': dict(decay_mult=0.0),
            'rpb': dict(decay_mult=0.0),
            'rpe_table': dict(decay_mult=0.0),
        },
    ),
)
default_hooks = dict(
    checkpoint=dict(
        _delete_=True,
        type='mmdat.AtomicCheckpointHook',
        max_keep_ckpts=3,
        save_best='coco/bbox_mAP',
    ),
    finite=dict(type='mmdat.CheckFiniteHook'),
    seed=dict(type='mmdat.IterSeedHook'),
    data_errors=dict(type='mmdat.NameDataHook'),
)
