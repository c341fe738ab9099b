# Fine-tuning at 384 from a classifier at 224, of which load_from takes
# backbone and head.
_base_ = 'imagenet_300e.py'

train_cfg = dict(max_epochs=30)
# 2e-5 for 512 pictures, 2e-7 at the end, no warm-up.
optim_wrapper = dict(
    optimizer=dict(lr=2e-5 * 256 / 512, weight_decay=1e-8),
)
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.01,
        by_epoch=True,
        begin=0,
        end=30,
        T_max=30,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=256)
