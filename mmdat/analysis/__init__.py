# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Counts the multiply-adds of models; ``import mmdat`` does not import it.

``counting.py`` counts the multiply-adds of any model. ``forward.py`` sends
random input through a whole detector, segmentor or classifier.
``breakdown.py`` assigns the counts to the parts of the model.
``projects/benchmark`` measures time and memory.
"""
