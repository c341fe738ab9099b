# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The tiny data set of the tests of the commands."""

from test_tools.conftest import digits

__all__ = ['digits']
