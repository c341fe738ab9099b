# mmdet's PVT returns a list and mmpretrain's pooling wants a tuple. BFP with
# one level has no parameters and gives twice its input, as a tuple.
pooling = [
    dict(
        type='mmdet.BFP',
        in_channels=512,
        num_levels=1,
        refine_level=0,
        refine_type=None,
    ),
    dict(type='GlobalAveragePooling'),
]
