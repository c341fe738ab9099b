# Heads small enough to train on a laptop's CPU in minutes.
_base_ = ['mask_rcnn_dat.py', '../backbones/dat_mini.py']

model = dict(
    backbone=dict(arch={{_base_.mini_arch}}),
    neck=dict(
        in_channels=[32, 64, 96, 128],
        out_channels=64,
        add_extra_convs='on_input',
    ),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(
            in_channels=64,
            fc_out_channels=256,
            num_classes=10,
            reg_class_agnostic=True,
        ),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(
            num_convs=2,
            in_channels=64,
            conv_out_channels=64,
            num_classes=10,
            class_agnostic=True,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=20)
    ),
)
