# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Implementations of the ops, one file each; see :mod:`mmdat.ops.dispatch`."""
