# DINO with a tiny DAT++ on the digits data set, for a CPU.
_base_ = '_base_/digits.py'
