# Swin with the sizes of small.py, from mmpretrain.
_base_ = 'small.py'
sizes = dict(embed_dims=16, depths=[1, 1, 2, 2], num_heads=[1, 2, 4, 8])
swin = dict(type='SwinTransformer', arch=sizes, img_size=96, window_size=3)
swin.update(pad_small_map=True, drop_path_rate=0.0)
model = dict(backbone=dict(_delete_=True, **swin))
