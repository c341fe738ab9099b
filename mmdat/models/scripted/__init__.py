# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Backbones as ``torch.jit.script`` can compile them.

TorchScript compiles a subset of Python without dynamic choice, so a model has
no fast paths there: each module stands here once more, in plain operations,
on the parameters of the original and under their names. Scripts take images
of any size, and train.
"""
