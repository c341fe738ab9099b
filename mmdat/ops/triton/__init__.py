# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Triton kernels for GPUs; only a launch imports the kernels, and triton."""
