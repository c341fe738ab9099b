_base_ = [
    'mmseg::_base_/models/upernet_swin.py',
    '../backbones/dat_mini.py',
]

model = dict(
    data_preprocessor=dict(size=(192, 192)),
    backbone=dict(
        _delete_=True, type='DAT', arch={{_base_.mini_arch}}, init_cfg=dict()
    ),
    decode_head=dict(
        in_channels=[32, 64, 96, 128], channels=64, num_classes=11
    ),
    auxiliary_head=dict(in_channels=96, channels=32, num_classes=11),
)
