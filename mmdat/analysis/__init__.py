# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What a model costs; not imported by ``import mmdat``.

``counting.py`` counts the multiply-adds of any model, ``forward.py`` sends
random input through a whole detector, segmentor or classifier,
``breakdown.py`` says which part of the model each of them belongs to. Time
and memory are measured by ``projects/benchmark``.
"""
