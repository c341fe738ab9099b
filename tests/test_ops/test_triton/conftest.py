# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Puts tools/dev/ on the path: kernel_cost compiles without a GPU."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / 'tools' / 'dev'))
