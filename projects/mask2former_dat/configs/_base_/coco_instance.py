# The host's Mask2Former with Swin-T for COCO instances, with DAT instead.
_base_ = [
    'mmdet::mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py',
    'mask2former_dat.py',
]

custom_imports = dict(imports=['mmdat'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, **_base_.dat_backbone))
optim_wrapper = dict(
    constructor='mmdat.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, **_base_.dat_paramwise_cfg),
)
default_hooks = dict(
    checkpoint=dict(
        _delete_=True, save_best='coco/segm_mAP', **_base_.dat_checkpoint
    ),
    **_base_.dat_hooks,
)
