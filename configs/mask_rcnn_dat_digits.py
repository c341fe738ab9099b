# Mask R-CNN with a tiny DAT++ on the digits data set; see tools/demo.sh.
_base_ = [
    '_base_/models/mask_rcnn_dat_mini.py',
    '_base_/datasets/digits_instance.py',
    '_base_/runtimes/instance_segmentation.py',
    '_base_/schedules/digits.py',
]
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1)
)
randomness = dict(seed=0)
