# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Handwritten digits pasted on photographs, in three standard layouts.

A small but genuine data set for detection, instance and semantic segmentation
and classification, made from images that scikit-learn and scikit-image ship.
"""

from .maker import DigitsOptions, make_digits

__all__ = ['DigitsOptions', 'make_digits']
