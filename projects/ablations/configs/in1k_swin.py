# Swin-T in the recipe of DAT-T.
_base_ = '../../../configs/classifier_dat_t_in1k.py'
model = dict(
    backbone=dict(
        _delete_=True, type='SwinTransformer', arch='tiny', drop_path_rate=0.2
    )
)
