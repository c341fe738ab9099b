# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What the commands in ``tools/`` do: configs, launching, checks.

``import mmdat`` leaves it alone. ``layer_decay`` is for configs: the registry
imports it when one asks for it.
"""
