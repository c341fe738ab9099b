# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Puts tests/ on the path, so that any test can import the oracle."""

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

# How many cases each test with the mark `fuzz` tries: the same ones in every
# run of the suite, new ones each time in the longer run of `make fuzz`.
_COMMON = dict(deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile(
    'suite', max_examples=40, derandomize=True, database=None, **_COMMON
)
settings.register_profile(
    'fuzz', max_examples=450, print_blob=True, database=None, **_COMMON
)
settings.load_profile('suite')


def pytest_configure(config):
    config.addinivalue_line(
        'markers', 'slow: takes more than about ten seconds on two cores'
    )
    config.addinivalue_line('markers', 'fuzz: tries many cases of its own')
