# UPerNet with DAT-B, 160,000 iterations.
_base_ = 'upernet_dat_t_ade20k.py'

model = dict(
    backbone=dict(arch='dat_b', drop_path_rate=0.7),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
