# The sizes of Swin-T with the attention of DAT++ and none of its convolutions,
# as in the authors' dat_t_ss_nd.yaml. The patch embedding has 64 channels.
_base_ = '../../../configs/classifier_dat_t_in1k.py'
plain = dict(conv_embed=False, conv_mlp=False, local_perception=False)
sizes = dict(depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], stem_channels=64)
arch = dict(plain, **sizes, family='dat_pp', embed_dims=[96, 192, 384, 768])
arch.update(
    attentions=['ND', 'ND', 'NDNDND', 'DD'], offset_groups=[1, 2, 4, 8]
)
model = dict(backbone=dict(arch=dict(arch, _delete_=True)))
