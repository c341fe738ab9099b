# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Triton kernels; these files import triton, so only a launch imports them."""
