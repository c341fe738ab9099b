# Oriented R-CNN with DAT-T++ on DOTA, 1x; needs mmrotate.
_base_ = 'mmrotate::oriented_rcnn/oriented-rcnn-le90_swin-tiny_fpn_1x_dota.py'

custom_imports = dict(imports=['mmdat'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True, type='mmdat.DAT', arch='dat_pp_t', drop_path_rate=0.1
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
