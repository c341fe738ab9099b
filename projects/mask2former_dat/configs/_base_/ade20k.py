# The host's Mask2Former with Swin-T on ADE20K, with DAT instead.
_base_ = [
    'mmseg::mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py',
    'mask2former_dat.py',
]

custom_imports = dict(imports=['mmdat'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, **_base_.dat_backbone))
optim_wrapper = dict(
    constructor='mmdat.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, **_base_.dat_paramwise_cfg),
)
default_hooks = dict(
    checkpoint=dict(_delete_=True, save_best='mIoU', **_base_.dat_checkpoint),
    **_base_.dat_hooks,
)
