# PVT with the sizes of small.py, from mmdet.
_base_ = 'small.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdet.PyramidVisionTransformer',
        embed_dims=32,
        num_layers=[2, 2, 2, 2],
        num_heads=[1, 2, 4, 8],
        pretrain_img_size=64,
        drop_path_rate=0.0,
        out_indices=(3,),
    )
)
