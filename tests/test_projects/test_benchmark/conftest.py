# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Puts the project on the path, as running its command does."""

import sys
from pathlib import Path

PROJECT = Path(__file__).parents[3] / 'projects' / 'benchmark'
sys.path.insert(0, str(PROJECT))
