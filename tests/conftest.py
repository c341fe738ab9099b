# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Puts tests/ on the path, so that any test can import the oracle."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def pytest_configure(config):
    config.addinivalue_line(
        'markers', 'slow: takes more than about ten seconds on two cores'
    )
