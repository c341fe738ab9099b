# PVT-Small in the recipe of DAT-T.
_base_ = ['../../../configs/classifier_dat_t_in1k.py', 'pvt_pooling.py']
pvt = dict(
    type='mmdet.PyramidVisionTransformer', out_indices=(3,), drop_path_rate=0.2
)
model = dict(
    backbone=dict(_delete_=True, num_layers=[3, 4, 6, 3], **pvt),
    neck={{_base_.pooling}},
    head=dict(in_channels=512),
)
