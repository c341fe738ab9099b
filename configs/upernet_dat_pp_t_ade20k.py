# UPerNet with DAT-T++, 160,000 iterations.
_base_ = 'upernet_dat_t_ade20k.py'

model = dict(
    backbone=dict(arch='dat_pp_t'),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
