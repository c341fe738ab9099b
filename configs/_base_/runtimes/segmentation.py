_base_ = 'mmseg::_base_/default_runtime.py'

custom_imports = dict(imports=['mmdat'], allow_failed_imports=False)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmdat.AtomicCheckpointHook',
        by_epoch=False,
        interval=16000,
        max_keep_ckpts=3,
        save_best='mIoU',
    ),
    finite=dict(type='mmdat.CheckFiniteHook'),
    seed=dict(type='mmdat.IterSeedHook'),
    data_errors=dict(type='mmdat.NameDataHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
