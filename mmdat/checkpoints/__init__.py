# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""From the authors' released files to our models.

``released.py`` translates names, ``tables.py`` resizes position-bias tables,
``hooks.py`` applies both whenever a state dict is loaded. ``loading.py`` reads
files as data, ``fitting.py`` compares them with a model, ``starting.py``
starts a backbone from them, completely or in part, and ``publishing.py``
writes new files.
"""
