_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(imports=['mmdat'], allow_failed_imports=False)
default_hooks = dict(
    checkpoint=dict(
        type='mmdat.AtomicCheckpointHook',
        max_keep_ckpts=3,
        save_best='coco/bbox_mAP',
    ),
    finite=dict(type='mmdat.CheckFiniteHook'),
    seed=dict(type='mmdat.IterSeedHook'),
    data_errors=dict(type='mmdat.NameDataHook'),
)
