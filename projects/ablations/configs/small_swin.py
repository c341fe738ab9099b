# Swin with the sizes of small.py, from mmpretrain.
_base_ = 'small.py'
swin = dict(type='SwinTransformer', window_size=3, pad_small_map=True)
swin.update(arch=dict({{_base_.dims}}, depths=[1, 1, 2, 2]))
swin.update(img_size=96, drop_path_rate=0.0)
model = dict(backbone=dict(_delete_=True, **swin))
