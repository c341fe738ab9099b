# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What the commands in ``tools/`` do: configs, launching, checks.

Imported by the commands only; ``import mmdat`` leaves it alone.
"""
