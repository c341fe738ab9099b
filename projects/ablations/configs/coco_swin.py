# Mask R-CNN with Swin-T in the recipe of DAT-T.
_base_ = '../../../configs/mask_rcnn_dat_t_coco.py'
model = dict(backbone=dict(_delete_=True, type='SwinTransformer'))
