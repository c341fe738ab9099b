_base_ = 'no_decay.py'

train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=80000, val_interval=16000
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# For a total batch of 16. The authors ran 40,000 iterations of 32 pictures
# with twice the lr.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4
    ),
    paramwise_cfg=dict(custom_keys=_base_.no_decay),
)
param_scheduler = [
    dict(
        type='PolyLR',
        power=0.9,
        eta_min=0.0,
        by_epoch=False,
        begin=0,
        end=80000,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
