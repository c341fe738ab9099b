# Mask R-CNN with PVT-Small in the recipe of DAT-T.
_base_ = '../../../configs/mask_rcnn_dat_t_coco.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='PyramidVisionTransformer',
        num_layers=[3, 4, 6, 3],
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
