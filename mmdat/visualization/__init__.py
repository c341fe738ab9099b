# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Pictures; not imported by ``import mmdat``."""
