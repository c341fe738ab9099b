_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

# For ImageNet weights and rates of stochastic depth see mask_rcnn_dat.py.
model = dict(
    # The finest stage is not needed. Were it put out, the parameters of its
    # norm would get no gradient, which DDP does not allow.
    backbone=dict(
        _delete_=True,
        type='DAT',
        drop_path_rate=0.0,
        out_indices=(1, 2, 3),
        init_cfg=dict(),
    ),
    neck=dict(in_channels=[192, 384, 768], start_level=0),
)
