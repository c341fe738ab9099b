# PVT with the sizes of small.py, from mmdet.
_base_ = ['small.py', 'pvt_pooling.py']
pvt = dict(
    type='mmdet.PyramidVisionTransformer', out_indices=(3,), embed_dims=16
)
pvt.update(num_layers=[1, 1, 2, 2], num_heads=[1, 2, 4, 8])
pvt.update(pretrain_img_size=96, drop_path_rate=0.0)
model = dict(backbone=dict(_delete_=True, **pvt), neck={{_base_.pooling}})
