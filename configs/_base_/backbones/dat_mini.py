# A DAT++ small enough to train on a laptop's CPU in minutes.
mini_arch = dict(
    family='dat_pp',
    embed_dims=[32, 64, 96, 128],
    depths=[1, 2, 2, 2],
    num_heads=[1, 2, 3, 4],
    img_size=192,
)
