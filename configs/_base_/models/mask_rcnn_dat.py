_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

# To start from ImageNet weights, as every model of the authors, add to the
# command line: --pretrained dat_tiny_in1k_224.pth
# Rates of stochastic depth are those published for DAT++; for DAT none were,
# so its configs take the rate of the DAT++ of the same size and schedule.
model = dict(
    backbone=dict(
        _delete_=True, type='DAT', drop_path_rate=0.0, init_cfg=dict()
    ),
    # The fifth level is pooled. Released files of DAT++ hold a convolution
    # for it; the parameters that DAT's paper counts leave no room for one.
    neck=dict(in_channels=[96, 192, 384, 768]),
)
