# PVT-Small in the recipe of DAT-T.
_base_ = '../../../configs/classifier_dat_t_in1k.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdet.PyramidVisionTransformer',
        num_layers=[3, 4, 6, 3],
        drop_path_rate=0.2,
        out_indices=(3,),
    ),
    head=dict(in_channels=512),
)
