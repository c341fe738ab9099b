# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Deformable attention on a CPU, its bias as matrix products."""
