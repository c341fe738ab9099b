# The host's Mask2Former with Swin-T. What differs is said in the README beside
# it.
_base_ = 'mmdet::mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco-panoptic.py'  # noqa: E501

custom_imports = dict(imports=['mmdat'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True, type='mmdat.DAT', drop_path_rate=0.3, init_cfg=dict()
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
            'query_embed': dict(decay_mult=0.0),
            'query_feat': dict(decay_mult=0.0),
            'level_embed': dict(decay_mult=0.0),
        },
    ),
)
default_hooks = dict(
    checkpoint=dict(
        _delete_=True,
        type='mmdat.AtomicCheckpointHook',
        by_epoch=False,
        interval=5000,
        max_keep_ckpts=3,
        save_best='coco_panoptic/PQ',
    ),
    finite=dict(type='mmdat.CheckFiniteHook'),
    seed=dict(type='mmdat.IterSeedHook'),
    data_errors=dict(type='mmdat.NameDataHook'),
)
