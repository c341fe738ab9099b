# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Triton kernels for GPUs. Kernels and triton are imported at launch only."""
