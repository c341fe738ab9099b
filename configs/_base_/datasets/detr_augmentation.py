# DETR's augmentation: a random short side, half the time after a crop. Both
# times the long side is at most 1333.
short_sides = [(1333, side) for side in range(480, 801, 32)]
augmentation = [
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[
            [
                dict(
                    type='RandomChoiceResize',
                    scales=short_sides,
                    keep_ratio=True,
                )
            ],
            [
                dict(
                    type='RandomChoiceResize',
                    scales=[(1333, side) for side in (400, 500, 600)],
                    keep_ratio=True,
                ),
                dict(
                    type='RandomCrop',
                    crop_type='absolute_range',
                    crop_size=(384, 600),
                    allow_negative_crop=True,
                ),
                dict(
                    type='RandomChoiceResize',
                    scales=short_sides,
                    keep_ratio=True,
                ),
            ],
        ],
    ),
]
