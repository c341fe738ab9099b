# RTMDet with DAT-T++, 100 epochs; the host's config with Swin-B.
_base_ = 'mmdet::rtmdet/rtmdet_l_swin_b_4xb32-100e_coco.py'

custom_imports = dict(imports=['mmdat'], allow_failed_imports=False)
backbone = dict(type='mmdat.DAT', arch='dat_pp_t', out_indices=(1, 2, 3))
model = dict(
    backbone=dict(
        _delete_=True, **backbone, drop_path_rate=0.1, init_cfg=dict()
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
