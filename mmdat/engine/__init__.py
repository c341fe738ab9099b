# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What the commands in ``tools/`` do: configs, launching, checks.

``import mmdat`` does not import it. The registry imports ``layer_decay``,
``schedules`` and the hooks when a config names them.
"""
