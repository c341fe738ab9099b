# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Plain forms of the modules, which ``torch.jit.script`` can compile.

TorchScript compiles a subset of Python without dynamic dispatch, so scripts
have no fast paths. Each module has a plain form here, which shares the
parameters of the original and their names. Scripts accept images of any size
and can be trained.
"""
