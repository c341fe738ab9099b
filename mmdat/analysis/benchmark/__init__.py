# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Time and memory of backbones and attentions, side by side.

From the question to the answer: ``cases.py`` says what one case is,
``plan.py`` which cases are compared, ``backbones.py`` and ``attention.py``
build them, ``step.py`` is what is timed, ``memory.py`` what is weighed,
``worker.py`` does both in a process of its own, ``session.py`` has the
workers take turns, ``ratios.py`` pairs their times, and ``conditions.py``,
``rows.py``, ``tables.py`` and ``plot.py`` write it down. ``run.py`` does all
of it.
"""
