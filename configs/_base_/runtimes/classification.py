_base_ = 'mmpretrain::_base_/default_runtime.py'

custom_imports = dict(imports=['mmdat'], allow_failed_imports=False)
default_hooks = dict(
    checkpoint=dict(
        type='mmdat.AtomicCheckpointHook',
        max_keep_ckpts=3,
        save_best='accuracy/top1',
    ),
    finite=dict(type='mmdat.CheckFiniteHook'),
    seed=dict(type='mmdat.IterSeedHook'),
    data_errors=dict(type='mmdat.NameDataHook'),
)
# Each process draws mixup, cutmix and stochastic depth of its own, as the
# authors' do.
randomness = dict(seed=None, deterministic=False, diff_rank_seed=True)
