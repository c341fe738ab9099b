# The parts that DAT changes in every Mask2Former of the host, used by the
# other files here. The README gives the reasons.
dat_backbone = dict(type='mmdat.DAT', drop_path_rate=0.3, init_cfg=dict())
dat_paramwise_cfg = dict(
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
)
dat_checkpoint = dict(
    type='mmdat.AtomicCheckpointHook',
    by_epoch=False,
    interval=5000,
    max_keep_ckpts=3,
)
dat_hooks = dict(
    finite=dict(type='mmdat.CheckFiniteHook'),
    seed=dict(type='mmdat.IterSeedHook'),
    data_errors=dict(type='mmdat.NameDataHook'),
)
