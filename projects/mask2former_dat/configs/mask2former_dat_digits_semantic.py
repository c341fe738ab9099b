# Mask2Former with a tiny DAT++ for the classes of the digits, for a CPU.
_base_ = '_base_/digits_semantic.py'
