_base_ = 'mmseg::_base_/models/upernet_swin.py'

# To start from ImageNet weights, as every model of the authors, add to the
# command line: --pretrained dat_tiny_in1k_224.pth
# Rates of stochastic depth are those published for DAT++; for DAT none were,
# so its configs take the rate of the DAT++ of the same size.
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(_delete_=True, type='DAT', init_cfg=dict()),
    decode_head=dict(in_channels=[96, 192, 384, 768], num_classes=150),
    auxiliary_head=dict(in_channels=384, num_classes=150),
)
