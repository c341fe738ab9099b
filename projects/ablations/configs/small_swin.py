# Swin with the sizes of small.py, from mmpretrain.
_base_ = 'small.py'
sizes = dict(embed_dims=32, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8])
model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        arch=sizes,
        img_size=64,
        pad_small_map=True,
        drop_path_rate=0.0,
    )
)
