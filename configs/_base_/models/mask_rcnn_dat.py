_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

# To start from ImageNet weights, add to the command line
#   --cfg-options model.backbone.init_cfg.type=Pretrained
#                 model.backbone.init_cfg.checkpoint=dat_tiny_in1k_224.pth
model = dict(
    backbone=dict(_delete_=True, type='DAT', init_cfg=dict()),
    # The fifth level is a convolution of its own, as in the released files.
    neck=dict(
        in_channels=[96, 192, 384, 768],
        add_extra_convs='on_input',
        num_outs=5,
    ),
)
