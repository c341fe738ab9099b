_base_ = 'mmseg::_base_/models/fpn_r50.py'

# For ImageNet weights and rates of stochastic depth see upernet_dat.py.
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(_delete_=True, type='DAT', init_cfg=dict()),
    neck=dict(in_channels=[96, 192, 384, 768]),
    decode_head=dict(num_classes=150),
)
