# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Data sets made on the spot; not imported by ``import mmdat``."""
