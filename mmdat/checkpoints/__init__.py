# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""From the authors' released files to our models.

``released.py`` translates names, ``tables.py`` resizes position-bias tables,
``hooks.py`` applies both whenever a state dict is loaded. ``loading.py`` reads
files as data, ``identify.py`` says what they are and ``fitting.py`` whether
they are what a model needs. ``converting.py`` and ``publishing.py`` write them
anew.
"""
