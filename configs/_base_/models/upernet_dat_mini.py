# Heads small enough to train on a laptop's CPU in minutes.
_base_ = ['upernet_dat.py', '../backbones/dat_mini.py']

model = dict(
    data_preprocessor=dict(size=(192, 192)),
    backbone=dict(arch={{_base_.mini_arch}}),
    decode_head=dict(
        in_channels=[32, 64, 96, 128], channels=64, num_classes=11
    ),
    auxiliary_head=dict(in_channels=96, channels=32, num_classes=11),
)
