# A tiny DAT++ as classifier of the digits data set.
_base_ = [
    '_base_/models/classifier_dat_mini.py',
    '_base_/datasets/digits_classification.py',
    '_base_/runtimes/classification.py',
    '_base_/schedules/digits.py',
]
randomness = dict(seed=0)
