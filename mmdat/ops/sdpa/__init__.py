# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Plain PyTorch: fused attention in chunks and tiles, on any device."""
